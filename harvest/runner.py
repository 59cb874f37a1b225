"""``saecache.harvest``: plan, check, run, finish; resumable at every moment."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from tqdm import tqdm

from ..store import ActivationCache, CacheWriter, Manifest, SaecacheError, UsageError, check_disk_space
from ..store.config import GIB
from ..store.identity import canonical_json
from ..store.journal import WORK_FOLDER
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
from .stages import run_overlapped, stop_on_signals
from .stream import Batch, batches

_OPERATIONAL = {"batch_size", "device", "commit_seconds"}  # settings that do not change the cache


@dataclass(frozen=True)
class HarvestResult:
    """A finished cache.

    ``reused``: it was there already and nothing was done. Seconds are those of all runs that it took to read
    the rows, and of the last one to shuffle them; 0 when reused.
    """

    path: Path
    manifest: Manifest
    reused: bool
    harvest_seconds: float = 0.0
    shuffle_seconds: float = 0.0


def run(
    config: HarvestConfig, out: str | Path | None = None, *, extend: str | Path | None = None
) -> HarvestResult:
    """Harvest into the folder ``out`` (default: a folder of its own below ``caches/``).

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
    path = Path(out) if out is not None else default_path(config)
    base, base_facts = (None, None) if extend is None else open_base(extend)
    plan = make_plan(config, path, base_facts)
    if plan.existing is not None and plan.existing.manifest is not None:
        return HarvestResult(path, plan.existing.manifest, reused=True)
    if base is None and plan.existing is not None and plan.existing.copying:
        raise UsageError(f"{path} was begun with --extend and has not taken all rows yet: give it again")
    with stop_on_signals() as stop_asked:
        model = plan.load_model()
        widths = model.widths(plan.hooks)
        _announce(plan, widths)
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
        )
        try:
            if taken is not None:
                taken.write(writer)
            progress = _harvest(plan, model, writer, medians, stop_asked)
            harvested = monotonic()
            manifest = _finish(plan, writer, progress, stop_asked, base)
        except Exception:
            writer.close()
            if writer.sequences_done == 0:
                _remove_empty(path, was_there)
            raise
        finally:
            writer.close()
    if config.heldout_fraction > 0 and not manifest.heldout_rows:
        _say(f"warning: none of the {progress.documents} documents fell to the held-out split; it is empty")
    return HarvestResult(path, manifest, False, progress.seconds, monotonic() - harvested)


def _batch_size(plan: Plan, model: LanguageModel, before: int | None) -> int:
    """As configured, else as ``before``, else what is fastest."""
    if plan.config.batch_size != "auto":
        return plan.config.batch_size
    return before or choose_batch_size(model, plan.hooks, plan.rule.context)


def default_path(config: HarvestConfig) -> Path:
    """``caches/<model>-<hash of the settings>``."""
    settings = config.model_dump(mode="json", exclude=_OPERATIONAL)
    digest = hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:8]
    name = config.model.name.rstrip("/").replace(":", "-").rsplit("/", 1)[-1]
    return Path("caches") / f"{name}-{digest}"


def _announce(plan: Plan, widths: dict[str, int]) -> None:
    """Say what is going to be written, and refuse when the disk cannot hold it."""
    planned = planned_size(plan, widths)
    hooks = ", ".join(f"{name} ({width})" for name, width in widths.items())
    _say(
        f"harvest {plan.config.num_tokens:,} tokens of {plan.source} with {plan.files.name} "
        f"({plan.dtype} on {plan.device.type}) at {hooks}"
    )
    _say(
        f"planned: {planned.final_bytes / GIB:.2f} GiB ({planned.final_bytes:,} bytes) in {plan.path}, "
        f"{planned.peak_bytes / GIB:.2f} GiB while it is written"
    )
    work = plan.path / WORK_FOLDER
    already = sum(file.stat().st_size for file in work.rglob("*") if file.is_file()) if work.is_dir() else 0
    check_disk_space(plan.path, planned, already_bytes=already)


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
