"""Prevalence: the share of recent rows on which each latent is active, as a running mean.

Legend: F latents.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...backends.constants import one
from ...pairs import Pairs
from .rows import Batch

SUM, WEIGHT = "prevalence_sum", "prevalence_weight"


def initial_prevalence(num_latents: int) -> dict[str, Tensor]:
    """The state before the first batch."""
    return {SUM: torch.zeros(num_latents), WEIGHT: torch.zeros(())}


def observe_prevalence(batch: Batch, codes: Pairs, window_rows: int | None) -> None:
    """Add the codes of a whole batch (values other than 0 only); older rows fade with ``window_rows``."""
    num_rows = batch.num_rows_of_all
    kept = 0.5 ** (num_rows / rows_of_window(batch, window_rows))
    share = batch.row_group.sum(batch.backend.count_active(codes)[1]).div(num_rows)
    means = [batch.state[SUM], batch.state[WEIGHT]]
    torch._foreach_mul_(means, kept)
    torch._foreach_add_(means, [share, one(share.device)], alpha=1 - kept)


def prevalence(state: Mapping[str, Tensor]) -> Tensor:
    """The share of recent rows on which each latent was active, float32 [F]; 0 before the first batch."""
    return state[SUM] / state[WEIGHT].clamp_min(1e-30)


def window_seen(batch: Batch, window_rows: int | None) -> bool:
    """Whether a whole window of rows came before this batch; only then is a rare latent a dying one."""
    return batch.step * batch.step_rows >= rows_of_window(batch, window_rows)


def rows_of_window(batch: Batch, window_rows: int | None) -> int:
    """The half-life of an observation in rows; None means a twentieth of the run."""
    return max(1, batch.num_steps * batch.step_rows // 20) if window_rows is None else window_rows
