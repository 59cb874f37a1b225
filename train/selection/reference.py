"""The selection rules as plain definitions on the whole matrix: what every fast path is tested against.

All of them order equal pre-activations by place, so that each rule selects exactly one set.
"""

import torch
from torch import Tensor


def largest(scores: Tensor, count: int) -> Tensor:
    """The places of the ``count`` largest of ``scores`` [n], the first of equal ones: bool [n]."""
    order = torch.sort(scores, descending=True, stable=True).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def per_row(pre_BF: Tensor, k: int) -> Tensor:
    """TopK: the ``k`` largest of each row; the lowest latent first among equals. bool [B, F]."""
    return torch.stack([largest(row, k) for row in pre_BF])


def per_batch(pre_BF: Tensor, total: int, allowed: Tensor | None = None) -> Tensor:
    """BatchTopK, Mutual Choice: the ``total`` largest of all; the lowest (row, latent) first among equals.

    ``allowed`` (bool [F]) leaves only these latents in the choice.
    """
    scores = pre_BF if allowed is None else pre_BF.where(allowed, -torch.inf)
    return largest(scores.flatten(), total).view_as(pre_BF)


def per_latent(pre_BF: Tensor, counts: Tensor) -> Tensor:
    """Feature Choice: the ``counts[i]`` (int64 [F]) largest of latent i; the lowest row first among
    equals.
    """
    columns = [largest(column, int(count)) for column, count in zip(pre_BF.T, counts, strict=True)]
    return torch.stack(columns, dim=1)


def threshold(pre_BF: Tensor, value: Tensor | float) -> Tensor:
    """Strictly above ``value``, a number or one per latent [F]."""
    return pre_BF > value
