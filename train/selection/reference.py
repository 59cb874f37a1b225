"""Plain definitions of the selection rules on the whole matrix; every fast path is tested against them.

Equal pre-activations are ordered by their place, so each rule selects exactly one set.
"""

import torch
from torch import Tensor


def largest(scores: Tensor, count: int) -> Tensor:
    """A mask of the ``count`` largest of ``scores`` [n]; ties go to the first: bool [n]."""
    order = torch.sort(scores, descending=True, stable=True).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def per_row(pre_BF: Tensor, k: int) -> Tensor:
    """TopK: the ``k`` largest of each row; ties go to the lowest latent. bool [B, F]."""
    return torch.stack([largest(row, k) for row in pre_BF])


def per_batch(pre_BF: Tensor, total: int, allowed: Tensor | None = None) -> Tensor:
    """BatchTopK, Mutual Choice: the ``total`` largest of all; ties go to the lowest (row, latent).

    ``allowed`` (bool [F]) restricts the choice to these latents.
    """
    scores = pre_BF if allowed is None else pre_BF.where(allowed, -torch.inf)
    return largest(scores.flatten(), total).view_as(pre_BF)


def per_latent(pre_BF: Tensor, counts: Tensor) -> Tensor:
    """Feature Choice: the ``counts[i]`` (int64 [F]) largest of latent i; ties go to the lowest row."""
    columns = [largest(column, int(count)) for column, count in zip(pre_BF.T, counts, strict=True)]
    return torch.stack(columns, dim=1)


def threshold(pre_BF: Tensor, value: Tensor | float) -> Tensor:
    """All pairs strictly above ``value``, a number or one per latent [F]."""
    return pre_BF > value
