"""Looks through the held-out rows for the latents of one SAE that can be judged, and for their windows.

Two passes: the first counts the windows in which each latent is active, the second keeps the activations of
the chosen latents only, so that memory does not grow with the dictionary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...common.progress import progress_bar
from ...store import ActivationCache
from ...train import SAE
from ..measure import read_rows
from ..results import SkippedLatent
from ..rows import MeasuredRows
from .activations import ActivationStream
from .config import InterpretConfig
from .examples import LatentExamples, TooFewWindows, choose_examples
from .windows import Ints, WindowCounts, Windows


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The latents of one SAE that are judged, ascending, and those that are not.

    Attributes:
        density: float64 [F], share of the rows on which each latent is active.
        too_few_windows: latents that are active in some window, but in too few to be chosen.
    """

    density: NDArray[np.float64]
    alive: int
    too_few_windows: int
    examples: Sequence[LatentExamples]
    skipped: Sequence[SkippedLatent]


@torch.no_grad()
def survey_latents(
    sae: SAE,
    name: str,
    cache: ActivationCache,
    rows: MeasuredRows,
    windows: Windows,
    config: InterpretConfig,
    *,
    show_progress: bool,
) -> Survey:
    """Choose latents and their windows, a function of the SAE, the rows, the settings and the seed.

    Raises:
        UsageError: a latent that the SAE does not have, or not one latent that can be judged.
    """
    num_latents = sae.cfg.num_latents
    beyond = [latent for latent in config.latents or [] if latent >= num_latents]
    if beyond:
        raise UsageError(f"SAE {name} has latents 0 to {num_latents - 1}, and latents names {beyond[0]}")
    counts, active_rows = WindowCounts(windows, num_latents), np.zeros(num_latents, dtype=np.int64)
    with progress_bar(f"{name}: windows", "row", 2 * rows.count, hidden=not show_progress) as progress:
        for block in rows.blocks(config.rows_per_block):
            codes = sae.encode_sparse(read_rows(sae, cache, rows.split, np.asarray(block)).x)
            there = (codes.value != 0).cpu().numpy()
            latent = codes.latent.cpu().numpy()[there]
            counts.update(block.start - rows.first + codes.rows().cpu().numpy()[there], latent)
            active_rows += np.bincount(latent, minlength=num_latents)
            progress.update(len(block))
        windows_F = counts.finish()
        wanted = _draw(windows_F, config)
        stream = ActivationStream(wanted)
        for block in rows.blocks(config.rows_per_block):
            index = np.asarray(block)
            x_BD = read_rows(sae, cache, rows.split, index).x
            stream.update(sae.encode_sparse(x_BD), index - rows.first)
            progress.update(len(block))
    columns = stream.columns()
    examples: list[LatentExamples] = []
    skipped: list[SkippedLatent] = []
    for latent in wanted:
        try:
            examples.append(
                choose_examples(
                    latent, columns[latent], windows, config.windows, config.calibration, config.seed
                )
            )
        except TooFewWindows as error:
            skipped.append(SkippedLatent(index=latent, reason=str(error)))
    if not examples:
        reasons = "; ".join(f"latent {one.index}: {one.reason}" for one in skipped[:3])
        raise UsageError(
            f"no latent of SAE {name} can be judged on {rows.count:,} held-out rows in {len(windows):,} "
            f"windows: the most active one is active in {windows_F.max(initial=0):,} windows, expected "
            f"{least_windows(config):,}{'; ' + reasons if reasons else ''}. Harvest more held-out text, or "
            "lower windows.least, windows.explain and windows.score"
        )
    return Survey(
        density=active_rows / rows.count,
        alive=int((windows_F > 0).sum()),
        too_few_windows=int(((windows_F > 0) & (windows_F < least_windows(config))).sum()),
        examples=examples,
        skipped=skipped,
    )


def least_windows(config: InterpretConfig) -> int:
    """The number of windows that a latent must have to be drawn."""
    return max(config.windows.least, config.windows.explain + config.windows.score)


def _draw(windows_F: Ints, config: InterpretConfig) -> list[int]:
    """The latents to judge, ascending: those that are named, or some that have enough windows."""
    if config.latents is not None:
        return sorted(set(config.latents))
    enough = np.flatnonzero(windows_F >= least_windows(config))
    drawn = np.random.default_rng(config.seed).permutation(enough)[: config.num_latents]
    return sorted(int(latent) for latent in drawn)
