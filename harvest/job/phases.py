"""A harvest as a job of three phases, which its journal names: copying, reading, finishing.

``copying`` takes rows of a finished cache that is extended (skipped without one), ``reading`` runs the model
over text, ``finishing`` shuffles and writes the arrays. A job that was stopped continues in its phase.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import torch

from ...common.interrupts import stop_on_signals
from ...distributed.group import ALONE, Group
from ...distributed.launch import world
from ...store import (
    ActivationCache,
    Manifest,
    UsageError,
    check_disk_space,
)
from ...store.remote import is_url
from ...store.remote.opening import read_manifest_at
from ...store.remote.team import find_cache, team_locations
from ...store.untrusted_json import describe_invalid
from ...store.writing.helper import HelperWriter, SharedCacheWriter, commit_together
from ...store.writing.journal import WORK_FOLDER, damaged_journal
from ..config import HarvestConfig
from ..model.conditions import condition_differences, cuts_padding, describe_conditions
from ..model.language_model import LanguageModel
from ..plan import HarvestPlan, follow_plan, make_plan
from .batch_size import settle_batch_size
from .destination import Destination, open_destination, planned_size
from .extend import BasePrefix, match_base, open_base
from .finishing import finish
from .first_block import measure_first_block
from .joint_writer import journal_of_first, open_writer
from .own_folder import own_folder
from .reading import read_text
from .row_writer import Progress
from .shared_folder import share_no_folder


@dataclass(frozen=True)
class HarvestResult:
    """A finished cache.

    ``path`` is its folder or URL. ``reused``: it was there already and nothing was done. Seconds are those of
    all runs that it took to read the rows, and of the last one to shuffle them; 0 when reused.
    """

    path: Path | str
    manifest: Manifest = field(repr=False)
    reused: bool
    harvest_seconds: float = 0.0
    shuffle_seconds: float = 0.0


@torch.inference_mode(False)  # its tensors could not change in the threads of a forward
def harvest(
    config: HarvestConfig,
    out: str | Path | None,
    *,
    extend: str | Path | None,
    scratch: Path | None,
    force: bool,
) -> HarvestResult:
    """See :func:`saecache.harvest.runner.run`."""
    group = world().everyone
    with group.together():
        destination = open_destination(config, out, scratch)
        base, base_facts = (None, None) if extend is None else open_base(extend)
    with ExitStack() as stack:
        stack.enter_context(closing(destination))
        plan = in_bucket = None
        with group.together():
            if group.is_first:
                in_bucket = destination.in_bucket()
                plan = make_plan(config, destination.folder, base_facts, in_bucket)
        settled = group.gather_values(plan.settled() if plan is not None and group.size > 1 else None)[0]
        with group.together():
            plan = plan or follow_plan(config, destination.folder, settled)
        if plan.existing is not None and plan.existing.manifest is not None:
            destination.clean()
            return HarvestResult(destination.name, plan.existing.manifest, reused=True)
        if settled is not None and settled["finished"]:
            return HarvestResult(destination.name, read_manifest_at(destination.name), reused=True)
        if share_no_folder(plan, destination, begun_so=in_bucket is not None, group=group):
            destination = destination.apart(stack.enter_context(own_folder(destination.folder, group)))
            stack.enter_context(closing(destination))  # before that folder goes
            plan = replace(plan, path=destination.folder)
        with stop_on_signals() as stop_asked:
            job = HarvestJob(plan, destination, base, stop_asked, group)
            found = None if force else job.ask_team()
            if found is not None:
                return found
            job.prepare()
            return job.run()


class HarvestJob:
    """One harvest on its way through its phases."""

    _prefix: BasePrefix  # of a cache that is extended, from :meth:`prepare` on

    def __init__(
        self,
        plan: HarvestPlan,
        destination: Destination,
        base: ActivationCache | None,
        stop_asked: Callable[[], bool],
        group: Group = ALONE,
    ) -> None:
        """Load the model, unless all rows are read. Every process of ``group`` has a job and a model.

        Raises:
            UsageError: the harvest cannot go on as it was begun.
            CorruptCacheError: its journal is damaged.
        """
        self._plan = plan
        self._destination = destination
        self._base = base
        self._stop_asked = stop_asked
        self._group = group
        before = {} if plan.existing is None else plan.existing.progress
        try:
            self._progress = Progress.from_json(before)
        except ValueError as error:
            raise damaged_journal(plan.path, describe_invalid(error)) from None
        if not before and base is not None:
            self._progress.phase = "copying"
        with group.together():
            if base is None and self._progress.phase == "copying":
                raise UsageError(
                    f"{plan.path} was begun with --extend and has not copied all rows yet: give it again"
                )
        self._model: LanguageModel | None = None
        if self._progress.phase == "finishing" and plan.existing is not None:
            self._widths: dict[str, int] = dict(plan.existing.identity["hooks"])
        else:
            with group.together():
                self._model = plan.load_model()
                self._widths = self._model.widths(plan.hooks)
            settle_batch_size(plan, self._model, self._progress, base, group)
        self._count_own_rows()

    def ask_team(self) -> HarvestResult | None:
        """A cache of the same identity that the team has."""

        def find() -> str | None:
            places = team_locations(self._plan.config.team)
            place = find_cache(self._plan.fingerprint(self._widths), places) if places else None
            return None if place is None else str(place)

        found = self._group.on_first(find)
        if found is None:
            return None
        place = found if is_url(found) else Path(found)
        self._say(
            f"the team has this cache: {place}; it is used instead of a harvest (--force harvests anyway)"
        )
        return HarvestResult(place, read_manifest_at(place), reused=True)

    def prepare(self) -> None:
        """Say what is going to be written, check the disk, claim the bucket, and look at the first block.

        Raises:
            UsageError: too little room, a place that is taken, or text that gives no row.
            BadActivationError: NaN or Inf in the first block.
        """
        self._progress.median_norms = self._group.on_first(self._prepare)
        if self._base is not None and self._progress.phase == "copying":
            own = self._prefix.to_json() if self._group.is_first else None
            self._prefix = BasePrefix.from_json(self._base, self._group.gather_values(own)[0])

    def _count_own_rows(self) -> None:
        """Let sums over rows be those of this process; the first one adds those of the others to its own."""
        if not self._group.is_first:
            self._progress.excluded, self._progress.energy = Progress().excluded, {}

    def _prepare(self) -> dict[str, float] | None:
        """What one process does for all; returns the norms that attention sinks are judged by."""
        plan, destination = self._plan, self._destination
        planned = planned_size(plan, self._widths)
        hooks = ", ".join(f"{name} ({width})" for name, width in self._widths.items())
        self._say(
            f"harvest {plan.config.num_tokens:,} tokens of {plan.source} with {plan.files.name} "
            f"({plan.dtype} on {plan.device}) at {hooks}"
        )
        here = destination.needed_here(planned, plan.config.storage, self._group.size)
        self._say(destination.describe(planned, here))
        work = plan.path / WORK_FOLDER
        files = work.rglob("*") if work.is_dir() else ()
        already = sum(file.stat().st_size for file in files if file.is_file())
        check_disk_space(plan.path, here, already_bytes=already)
        if destination.delivery is not None:
            conditions = describe_conditions(self._progress.conditions)
            destination.delivery.claim(plan.fingerprint(self._widths), conditions)
        if self._model is None or self._progress.tokens:
            return self._progress.median_norms
        medians = measure_first_block(plan, self._model, cuts_padding(self._progress.conditions))
        if self._base is not None and self._progress.phase == "copying":
            assert self._progress.batch_size is not None
            self._prefix = match_base(self._base, plan, self._progress, medians)
            self._warn_of_other_conditions(self._base)
            self._say(
                f"extending {self._base.path}: {self._prefix.progress.tokens:,} tokens are copied from there"
            )
        return medians

    def run(self) -> HarvestResult:
        """Go through the phases that are left. Where nothing was saved, nothing stays behind."""
        plan, destination, group = self._plan, self._destination, self._group
        writer = open_writer(plan, destination, self._widths, group)
        try:
            with closing(writer):
                if self._progress.phase == "copying":
                    self._copy(writer)
                if self._progress.phase == "reading":
                    self._read(writer)
                harvested = monotonic()
                manifest = finish(plan, destination.name, self._progress, writer, group, self._stop_asked)
        except Exception:
            if group.is_first and writer.sequences_done == 0 and destination.delivery is not None:
                destination.delivery.give_up()
            raise
        if plan.heldout_fraction > 0 and not manifest.heldout_rows:
            self._say(
                f"warning: none of the {self._progress.documents} documents that were read fell to the "
                "held-out split; it is empty"
            )
        if group.is_first:
            destination.clean()
        return HarvestResult(
            destination.name, manifest, False, self._progress.seconds, monotonic() - harvested
        )

    def _copy(self, writer: SharedCacheWriter | HelperWriter) -> None:
        """Rows of the cache that is extended."""
        commit_together(writer, self._group, writer.progress | {"phase": "copying"})
        self._prefix.copy_rows(writer, self._group, self._stop_asked)
        journal = journal_of_first(writer, self._group)
        if isinstance(writer, HelperWriter):
            writer.go_on_from(journal)
        self._progress = self._prefix.progress
        self._count_own_rows()

    def _read(self, writer: SharedCacheWriter | HelperWriter) -> None:
        """Text through the model, from where the last run stopped to the target."""
        assert self._model is not None
        read_text(self._plan, self._model, self._progress, writer, self._group, self._stop_asked, self._say)
        self._progress.phase = "finishing"

    def _warn_of_other_conditions(self, base: ActivationCache) -> None:
        there = base.provenance.get("conditions")
        here = self._progress.conditions
        if isinstance(there, dict) and here and (lines := condition_differences(there, here)):
            self._say(
                f"warning: {base.path} was harvested under other conditions, so the new rows may differ in "
                f"the last bits from those of one longer harvest ({'; '.join(lines)})"
            )

    def _say(self, message: str) -> None:
        """Once, however many processes there are."""
        if self._group.is_first:
            print(message, file=sys.stderr, flush=True)
