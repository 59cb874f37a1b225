"""All pairs that reach a threshold: the common part of the rules that compare across rows.

Legend: b rows of a block, F latents, P pairs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.compile import compiled
from ..kernels.encode import Blocks
from .errors import check_not_nan
from .float_bits import LOWEST, key
from .largest import mask_of_largest
from .pieces import Piece
from .scan import CHUNK, EXCLUDED, OVERFLOW, scan_above, whole_chunks
from .scores import each_block
from .screen import ScoredBlock


def collect(
    blocks: Blocks,
    threshold: Tensor,
    *,
    strict: bool,
    allowed: Tensor | None = None,
    most: int | None = None,
    expected_per_row: float = 32,
) -> list[Piece]:
    """The pairs with a pre-activation of at least (``strict``: above) their latent's ``threshold``.

    Args:
        threshold: float32 [F].
        allowed: bool [F]; the other latents have no pairs. None allows all.
        most: of more pairs than this in one block, only the largest are returned, the first of equal ones:
            no more than these could be among the ``most`` largest of all.
        expected_per_row: a guess, to reserve memory.
    """
    keys = _keys_of(threshold, allowed)
    least = keys.reshape(-1, CHUNK).min(axis=1)
    return each_block(
        blocks,
        lambda block: _cut(_collect(block, keys, least, strict, expected_per_row), most),
        lambda row, pre: _cut(_collect_torch(row, pre, threshold, strict, allowed), most),
        per_row=expected_per_row,
    )


def _keys_of(threshold: Tensor, allowed: Tensor | None) -> Any:
    num_latents = threshold.numel()
    keys = np.full(whole_chunks(num_latents), EXCLUDED, np.int32)
    _to_keys(threshold.detach().cpu().numpy(), keys)
    if allowed is not None:
        keys[:num_latents][~allowed.cpu().numpy()] = EXCLUDED
    return keys


def _cut(piece: Piece, most: int | None) -> Piece:
    if most is None or piece.value.numel() <= most:
        return piece
    mask = mask_of_largest(piece.value, most)
    row = torch.repeat_interleave(piece.count)
    return Piece(
        piece.first_row,
        torch.bincount(row[mask], minlength=piece.count.numel()),
        piece.latent[mask],
        piece.value[mask],
    )


def _collect_torch(
    first_row: int, pre: Tensor, threshold: Tensor, strict: bool, allowed: Tensor | None
) -> Piece:
    check_not_nan(first_row, pre)
    threshold = threshold.to(pre.device)
    mask = pre > threshold if strict else pre >= threshold
    if allowed is not None:
        mask &= allowed.to(pre.device)
    return Piece(first_row, mask.sum(1), mask.nonzero()[:, 1], pre[mask])


def _collect(block: ScoredBlock, keys: Any, least: Any, strict: bool, expected_per_row: float) -> Piece:
    num_rows, num_latents = block.scores.shape
    row_ptr = np.empty(num_rows + 1, np.int64)
    capacity, found = int(2 * expected_per_row * num_rows) + CHUNK, OVERFLOW
    while found == OVERFLOW:
        capacity = min(2 * capacity, num_rows * num_latents)
        latent = np.empty(capacity + CHUNK, np.int64)
        found = scan_above(
            block.scores, block.tops, block.latents, block.slack, block.relative,
            keys, least, latent, row_ptr,
        )  # fmt: skip
    start, stop = row_ptr[:-1], row_ptr[1:]
    if block.narrower is not None:
        any_row = np.full(num_rows, LOWEST)
        stop = block.narrower.reaching(block.first_row, start, stop, latent, any_row, keys)
    value = np.empty(found, np.float32)
    block.exact(block.first_row, start, stop, latent, value)
    count = np.empty(num_rows, np.int64)
    kept = _keep_reaching(start, stop, latent, value, keys, strict, count)
    kept_latent, kept_value = torch.from_numpy(latent[:kept].copy()), torch.from_numpy(value[:kept].copy())
    return Piece(block.first_row, torch.from_numpy(count), kept_latent, kept_value)


@compiled
def _to_keys(values: Any, keys: Any) -> None:
    for i in range(values.shape[0]):
        keys[i] = key(values[i])


@compiled
def _keep_reaching(
    start: Any, stop: Any, latent: Any, value: Any, keys: Any, strict: bool, count: Any
) -> int:
    """Move the pairs that do reach their threshold to the front.

    Returns:
        How many, and of each row in ``count``, int64 [b].
    """
    n = 0
    for row in range(count.shape[0]):
        before = n
        for i in range(start[row], stop[row]):
            own, least = key(value[i]), keys[latent[i]]
            if own > least or (own == least and not strict):
                latent[n] = latent[i]
                value[n] = value[i]
                n += 1
        count[row] = n - before
    return n
