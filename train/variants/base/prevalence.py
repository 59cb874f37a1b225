"""How often each latent has been active of late: a running mean over a window of rows.

Legend: F latents.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...pairs import Pairs
from .rows import Batch

SUM, WEIGHT = "prevalence_sum", "prevalence_weight"


def initial_prevalence(num_latents: int) -> dict[str, Tensor]:
    """The state before the first batch."""
    return {SUM: torch.zeros(num_latents), WEIGHT: torch.zeros(())}


def observe_prevalence(batch: Batch, codes: Pairs, window_rows: int | None) -> None:
    """Take in the codes of a whole batch (values other than 0 only); older rows fade with ``window_rows``."""
    kept = 0.5 ** (batch.num_rows / rows_of_window(batch, window_rows))
    share = codes.count_per_latent().float().div_(batch.num_rows)
    batch.state[SUM].mul_(kept).add_(share, alpha=1 - kept)
    batch.state[WEIGHT].mul_(kept).add_(1 - kept)


def prevalence(state: Mapping[str, Tensor]) -> Tensor:
    """Share of the rows of late on which each latent was active, float32 [F]; 0 before the first batch."""
    return state[SUM] / state[WEIGHT].clamp_min(1e-30)


def window_seen(batch: Batch, window_rows: int | None) -> bool:
    """Whether a whole window came before this batch, so that a rare latent can be told from a dying one."""
    return batch.step * batch.step_rows >= rows_of_window(batch, window_rows)


def rows_of_window(batch: Batch, window_rows: int | None) -> int:
    """Rows after which an observation counts half; None is a twentieth of the run."""
    return max(1, batch.num_steps * batch.step_rows // 20) if window_rows is None else window_rows
