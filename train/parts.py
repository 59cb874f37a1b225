"""Parts of a batch for rules that decide pair by pair: as many rows at a time as have a bounded number of
pairs.

A threshold may let half of all pairs through at the start of training and one in a thousand at its end:
parts of a fixed number of rows would be too large for memory at first, or too small for speed later on.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .batch import PART_ROWS, Batch
from .kernels import Blocks
from .pairs import Pairs
from .selection import select_threshold

PART_PAIRS = 1 << 21  # about 60 MB of pairs and their temporaries; one block of rows may have more


def parts_above(batch: Batch, threshold: Tensor | float) -> Iterator[tuple[Batch, Pairs]]:
    """Consecutive parts of ``batch``, each with its pairs strictly above ``threshold`` (a number or [F])."""
    start, gathered = 0, list[Pairs]()
    for first_row, pre in batch.blocks()():
        block = select_threshold(_only(pre), pre.shape[0], batch.num_latents, threshold)
        too_many = sum(map(len, gathered)) + len(block) > PART_PAIRS
        if gathered and (too_many or first_row + pre.shape[0] - start > PART_ROWS):
            yield _part(batch, start, gathered)
            start, gathered = first_row, []
        gathered.append(block)
    if gathered:
        yield _part(batch, start, gathered)


def _only(pre: Tensor) -> Blocks:
    return lambda: iter([(0, pre)])


def _part(batch: Batch, start: int, gathered: list[Pairs]) -> tuple[Batch, Pairs]:
    pairs = stack(gathered)
    return replace(batch, x_centered=batch.x_centered[start : start + pairs.num_rows]), pairs


def stack(parts: list[Pairs]) -> Pairs:
    """Pairs of consecutive rows as one; at least one part."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.cat([part.row_ptr.diff() for part in parts])
    return Pairs(
        row_ptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        latent=torch.cat([part.latent for part in parts]),
        value=torch.cat([part.value for part in parts]),
        num_latents=parts[0].num_latents,
    )
