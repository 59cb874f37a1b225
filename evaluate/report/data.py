"""Gathers what a page is made from: results, training curves, and the latents of every SAE."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UsageError
from ...common.lookups import is_file
from ...train.run_files import METRICS_FILE, RESULTS_FILE
from ..latents.folder import read_latents
from ..results import Results, SaeResult, read_results
from .comparison import ReportEntry
from .parts import LatentParts, spread_over_ranks
from .sampled import parts_of_samples
from .training import Curves, read_training_curves


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a page is made from.

    Attributes:
        measured: the results that were read, each with its file.
        entries: the SAEs in them.
        latents: the latents of each SAE; None where there are none.
        text_of: of each SAE, the number of the first one with the same text.
        notes: what is missing, for people.
    """

    measured: list[tuple[Path, Results]]
    entries: list[ReportEntry]
    latents: list[LatentParts | None]
    text_of: list[int]
    notes: list[str]


def gather(run_dirs: Sequence[Path], results: Path | None, most_latents: int | None) -> ReportData:
    """Read everything.

    Args:
        run_dirs: run folders; each holds ``results.json`` unless ``results`` is given, and ``metrics.jsonl``.
            A results file may stand for its folder.
        most_latents: of an SAE with more latents so many are shown; None: all are.

    Raises:
        UsageError: no results there, or damaged ones, or a damaged folder of latents.
    """
    paths = [_results_of(folder) for folder in run_dirs] if results is None else [results]
    measured = [(path, read_results(path)) for path in paths]
    names = Counter(sae.name for _, found in measured for sae in found.saes)
    logs: dict[Path, dict[str, Curves]] = {}
    entries: list[ReportEntry] = []
    latents: list[LatentParts | None] = []
    notes: list[str] = []
    for number, (path, found) in enumerate(measured, start=1):
        for sae in found.saes:
            run_name = path.resolve().parent.name or str(number)
            name = sae.name if names[sae.name] == 1 else f"{run_name}/{sae.name}"
            training = _training(sae, path.parent, run_dirs, logs)
            entries.append(ReportEntry(name=name, result=sae, training=training))
            latents.append(_latents(sae, name, path, found, most_latents, notes))
    return ReportData(
        measured=measured, entries=entries, latents=latents, text_of=_find_texts(latents), notes=notes
    )


def _results_of(run: Path) -> Path:
    return run if run.suffix == ".json" and is_file(run) else run / RESULTS_FILE


def _latents(
    sae: SaeResult, name: str, path: Path, results: Results, most: int | None, notes: list[str]
) -> LatentParts | None:
    folder = None if sae.latents_dir is None else _below(path.parent, sae.latents_dir, path)
    if folder is None or not folder.is_dir():
        if folder is not None:
            notes.append(
                f"{name}: there is no {folder}, so only a sample of its latents is shown. Keep the folder "
                "beside the results file, or measure again."
            )
        return parts_of_samples(sae, sae.rows or results.cache.rows)
    latents = read_latents(folder)
    shown = spread_over_ranks(latents, latents.num_latents if most is None else most)
    if len(shown) < latents.num_latents:
        notes.append(
            f"{name}: {len(shown):,} of {latents.num_latents:,} latents are in this page, spread over the "
            "ranks by density. 'saecache browse' shows all."
        )
    return LatentParts(latents=latents, rows=shown, numbers=shown)


def _below(folder: Path, name: str, path: Path) -> Path:
    """``folder / name``, which must not leave the folder.

    Raises:
        UsageError: it does.
    """
    try:
        inside = (folder / name).resolve()
        if inside.is_relative_to(folder.resolve()) and inside != folder.resolve():
            return inside
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        pass
    raise UsageError(f"{path}: latents_dir {name!r:.80} is not a folder beside the results; measure again")


def _find_texts(latents: Sequence[LatentParts | None]) -> list[int]:
    first: dict[bytes, int] = {}
    return [
        number if parts is None else first.setdefault(parts.text(), number)
        for number, parts in enumerate(latents)
    ]


def _training(
    sae: SaeResult, results_folder: Path, run_dirs: Sequence[Path], logs: dict[Path, dict[str, Curves]]
) -> Curves | None:
    """The training curves of an SAE: from its own run or, if that has moved, from one of ``run_dirs``."""
    try:
        variant = (results_folder / sae.sae_dir).resolve().parent
    except (OSError, RuntimeError, ValueError):  # a path of others: too long, a loop of links, a NUL
        return None
    for run_dir in (variant.parent, *run_dirs):
        path = run_dir / METRICS_FILE
        if path not in logs:
            try:
                logs[path] = read_training_curves(path)
            except FileNotFoundError:
                logs[path] = {}
        if variant.name in logs[path]:
            return logs[path][variant.name]
    return None
