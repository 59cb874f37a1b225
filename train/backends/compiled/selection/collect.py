"""Collect all pairs that reach a threshold, for the rules that compare across rows.

Legend: b rows of a block, F latents, P pairs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....pairs import Pairs
from ...block_pairs import BlockPairs, assemble
from ...sources import Source
from ..bits import LOWEST, key, mask_of_largest
from ..compile import compiled
from .scan import CHUNK, EXCLUDED, OVERFLOW, scan_above, whole_chunks
from .scored_blocks import ScoredBlock, each_block


def collect(
    source: Source,
    threshold: Tensor,
    *,
    strict: bool,
    most: int | None = None,
    expected_per_row: float = 32,
) -> Pairs:
    """Collect the pairs whose pre-activation reaches (``strict``: exceeds) their latent's ``threshold``.

    Args:
        threshold: float32 [F]; infinity selects nothing.
        most: if a block has more pairs, only its ``most`` largest are kept, ties to the first; the others
            cannot be among the ``most`` largest of all.
        expected_per_row: the expected number of pairs per row; it sets the memory and the product.

    Raises:
        NonFiniteError: a pre-activation is NaN.
    """
    keys = np.full(whole_chunks(threshold.numel()), EXCLUDED, np.int32)
    _to_keys(threshold.detach().numpy(), keys)
    least = keys.reshape(-1, CHUNK).min(axis=1)

    def work(block: ScoredBlock) -> BlockPairs:
        found = _collect(block, keys, least, strict, expected_per_row)
        if most is None or found.value.numel() <= most:
            return found
        return found.keep(mask_of_largest(found.value, most))

    found = each_block(source, work, per_row=expected_per_row)
    return assemble(found, source.num_latents, source.device)


def _collect(block: ScoredBlock, keys: Any, least: Any, strict: bool, expected_per_row: float) -> BlockPairs:
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
    return BlockPairs(block.first_row, torch.from_numpy(count), kept_latent, kept_value)


@compiled
def _to_keys(values: Any, keys: Any) -> None:
    for i in range(values.shape[0]):
        keys[i] = key(values[i])


@compiled
def _keep_reaching(
    start: Any, stop: Any, latent: Any, value: Any, keys: Any, strict: bool, count: Any
) -> int:
    """Move the pairs that do reach their threshold to the front, and count them per row in ``count`` [b].

    Returns:
        Their number.
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
