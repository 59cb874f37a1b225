"""``saecache.harvest``: plan, check, run, finish; resumable at every moment."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from tqdm import tqdm

from ..common.interrupts import stop_on_signals
from ..store import ActivationCache, CacheWriter, Manifest, SaecacheError, UsageError, check_disk_space
from ..store.identity import fingerprint, whole_identity
from ..store.remote.opening import read_manifest_at
from ..store.remote.team import find_cache, team_locations
from ..store.writing.journal import WORK_FOLDER
from .batch_size import choose_batch_size
from .config import HarvestConfig
from .extend import batch_size_of, extension_facts, open_base, retrace, say_what_is_taken
from .first_look import first_look
from .forward import RowReader, block_sequences, whole_blocks
from .model import LanguageModel
from .plan import Plan, make_plan
from .progress import Progress
from .provenance import run_facts
from .recorder import Recorder, Step
from .sizing import planned_size
from .stages import run_overlapped
from .stream import Batch, batches
from .target import Target, open_target


@dataclass(frozen=True)
class HarvestResult:
    """A finished cache.

    ``path`` is its folder or URL. ``reused``: it was there already and nothing was done. Seconds are those of
    all runs that it took to read the rows, and of the last one to shuffle them; 0 when reused.
    """

    path: Path | str
    manifest: Manifest
    reused: bool
    harvest_seconds: float = 0.0
    shuffle_seconds: float = 0.0


def run(
    config: HarvestConfig,
    out: str | Path | None = None,
    *,
    extend: str | Path | None = None,
    scratch: Path | None = None,
    force: bool = False,
) -> HarvestResult:
    """Harvest into ``out``, a folder (default: one of its own below ``caches/``) or a URL as ``s3://...``.

    The team's locations (``config.team`` and SAECACHE_TEAM) are asked first: a finished cache of the same
    identity is used where it is, unless ``force``. For a URL, rows are kept in the folder ``scratch`` until
    all are read, and finished shards are uploaded and removed there, the manifest last.

    An unfinished harvest of the same identity is continued: the cache is the same, byte for byte. A finished
    one is left as it is. ``extend`` is a finished cache of fewer tokens of the same stream: its rows are
    copied, and only the others go through the model. It stays as it is, and the new cache is the same, byte
    for byte, as without it.

    Raises:
        UsageError: a harvest that is impossible as configured, told before anything is written.
        BadActivationError: NaN, Inf or overflow in the activations.
        SaecacheError: the run cannot go on; what was done is saved.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; what was done is saved.
    """
    target = open_target(config, out, scratch)
    path = target.folder
    base, base_facts = (None, None) if extend is None else open_base(extend)
    plan = make_plan(config, path, base_facts, target.finished())
    if plan.existing is not None and plan.existing.manifest is not None:
        target.clean()
        return HarvestResult(target.name, plan.existing.manifest, reused=True)
    if base is None and plan.existing is not None and plan.existing.copying:
        raise UsageError(f"{path} was begun with --extend and has not taken all rows yet: give it again")
    with stop_on_signals() as stop_asked:
        model = plan.load_model()
        widths = model.widths(plan.hooks)
        found = None if force else _ask_team(plan, widths)
        if found is not None:
            return found
        _announce(plan, widths, target)
        if target.delivery is not None:
            target.delivery.claim(_fingerprint(plan, widths))
        medians = None
        taken = None
        if plan.existing is None or not plan.existing.started or plan.existing.copying:
            medians = first_look(plan, model)
            if base is not None:
                taken = retrace(base, plan, _batch_size(plan, model, batch_size_of(base)), medians)
                say_what_is_taken(taken)
        was_there = path.exists()
        writer = CacheWriter(
            path,
            hooks=widths,
            context=plan.rule.context,
            identity=plan.identity,
            seed=config.seed,
            heldout_fraction=config.heldout_fraction,
            storage=config.storage,
            planned_sequences=plan.full_sequences,
            delivery=target.delivery,
        )
        try:
            if taken is not None:
                taken.write(writer, stop_asked)
            progress = _harvest(plan, model, writer, medians, stop_asked)
            harvested = monotonic()
            manifest = _finish(plan, writer, progress, stop_asked, base)
        except Exception:
            writer.close()
            if writer.sequences_done == 0:
                _remove_empty(path, was_there)
                if target.delivery is not None:
                    target.delivery.give_up()
            raise
        finally:
            writer.close()
            target.close()
    if config.heldout_fraction > 0 and not manifest.heldout_rows:
        _say(f"warning: none of the {progress.documents} documents fell to the held-out split; it is empty")
    target.clean()
    return HarvestResult(target.name, manifest, False, progress.seconds, monotonic() - harvested)


def _ask_team(plan: Plan, widths: dict[str, int]) -> HarvestResult | None:
    """A cache of the same identity that the team has."""
    places = team_locations(plan.config.team)
    place = find_cache(_fingerprint(plan, widths), places) if places else None
    if place is None:
        return None
    _say(f"the team has this cache: {place}; it is used instead of a harvest (--force harvests anyway)")
    return HarvestResult(place, read_manifest_at(place), reused=True)


def _fingerprint(plan: Plan, widths: dict[str, int]) -> str:
    config = plan.config
    return fingerprint(
        whole_identity(
            plan.identity, widths, plan.rule.context, config.seed, config.heldout_fraction, config.storage
        )
    )


def _batch_size(plan: Plan, model: LanguageModel, before: int | None) -> int:
    """As configured, else as ``before``, else what is fastest."""
    if plan.config.batch_size != "auto":
        return plan.config.batch_size
    return before or choose_batch_size(model, plan.hooks, plan.rule.context)


def _announce(plan: Plan, widths: dict[str, int], target: Target) -> None:
    """Say what is going to be written, and refuse when the disk cannot hold it."""
    planned = planned_size(plan, widths)
    hooks = ", ".join(f"{name} ({width})" for name, width in widths.items())
    _say(
        f"harvest {plan.config.num_tokens:,} tokens of {plan.source} with {plan.files.name} "
        f"({plan.dtype} on {plan.device.type}) at {hooks}"
    )
    here = target.needed_here(planned, plan.config.storage)
    _say(target.describe(planned, here))
    work = plan.path / WORK_FOLDER
    already = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) if work.is_dir() else 0
    check_disk_space(plan.path, here, already_bytes=already)


def _harvest(
    plan: Plan,
    model: LanguageModel,
    writer: CacheWriter,
    medians: dict[str, float] | None,
    stop_asked: Callable[[], bool],
) -> Progress:
    """Everything from where the writer stands to the target."""
    config = plan.config
    progress = Progress.from_json(writer.progress)
    if medians is not None:
        progress.median_norms = medians
    progress.batch_size = _batch_size(plan, model, progress.batch_size)
    block = block_sequences(plan.device, plan.rule.context, progress.batch_size)
    reader = RowReader(model, plan.hooks, block)
    stream = batches(plan, progress.cursor, progress.tokens, whole_blocks(progress.batch_size, block))
    resumed = progress.tokens
    if resumed:
        _say(f"continuing after {resumed:,} tokens")

    def read(batch: Batch) -> Step:
        try:
            return Step(batch, reader.rows(*batch))
        except torch.OutOfMemoryError as error:
            raise SaecacheError(
                f"out of memory on {plan.device.type} with batch_size={progress.batch_size}: lower it "
                f"(--set batch_size=...), what was done is kept ({error})"
            ) from None

    with tqdm(
        total=max(config.num_tokens, resumed),
        initial=resumed,
        unit="tok",
        unit_scale=True,
        desc="harvest",
        mininterval=0.5 if sys.stderr.isatty() else 10,
        smoothing=0.05,
    ) as bar:
        recorder = Recorder(writer, progress, config, bar)
        try:
            run_overlapped(stream, read, recorder.write, should_stop=stop_asked)
        finally:
            recorder.save()
    if stop_asked():
        raise KeyboardInterrupt
    if progress.tokens < config.num_tokens:
        _say(
            f"warning: the text ended after {progress.tokens:,} tokens, "
            f"{config.num_tokens - progress.tokens:,} short "
            f"of num_tokens={config.num_tokens:,}; nothing is repeated, the cache holds what there is"
        )
    return progress


def _finish(
    plan: Plan,
    writer: CacheWriter,
    progress: Progress,
    stop_asked: Callable[[], bool],
    base: ActivationCache | None,
) -> Manifest:
    """Shuffle and write the final arrays."""
    with tqdm(
        unit="B", unit_scale=True, desc="shuffle", mininterval=0.5 if sys.stderr.isatty() else 10
    ) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if stop_asked():  # shards that are finished stay so
                raise KeyboardInterrupt

        return writer.finalize(
            counts=progress.counts(plan.config.num_tokens),
            provenance=run_facts(plan, progress) | ({} if base is None else extension_facts(base)),
            on_progress=on_progress,
        )


def _remove_empty(path: Path, was_there: bool) -> None:
    """Nothing was saved, so nothing is left behind."""
    shutil.rmtree(path / WORK_FOLDER, ignore_errors=True)
    if not was_there and path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
