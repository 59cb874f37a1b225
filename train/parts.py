"""Parts of a batch for rules that decide pair by pair: as many rows at a time as have so many pairs.

A threshold may let half of all pairs through at the start of training and one in a thousand at its end: parts
of a fixed number of rows would be too large for memory at first, or too small for speed later on.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from .batch import PART_ROWS, Batch, block_rows
from .kernels import Blocks
from .pairs import Pairs
from .products import prefers_matrices
from .selection import select_threshold

PART_PAIRS = 1 << 21  # aimed at: about 60 MB of pairs and their temporaries


def parts_above(batch: Batch, threshold: Tensor | float) -> Iterator[tuple[Batch, Pairs]]:
    """Consecutive parts of ``batch``, each with its pairs strictly above ``threshold`` (a number or [F]).

    The first part is one block of rows; a further one has as many rows as would have :data:`PART_PAIRS` pairs
    if it were as dense as the one before, but no fewer than a block and no more than :data:`PART_ROWS`.
    """
    least = min(block_rows(batch.num_latents), PART_ROWS)
    start, rows, many = 0, least, True
    while start < batch.num_rows:
        part = replace(batch, x_centered=batch.x_centered[start : start + rows])
        blocks = as_computed(part.blocks()) if many else part.blocks()
        pairs = select_threshold(blocks, part.num_rows, part.num_latents, threshold)
        yield part, pairs
        start += part.num_rows
        rows = max(least, min(PART_ROWS, part.num_rows * PART_PAIRS // max(1, len(pairs))))
        many = prefers_matrices(pairs)


def as_computed(blocks: Blocks) -> Blocks:
    """The same blocks, their values taken from the matrix product: not computed pair by pair once more."""
    return lambda: blocks()
