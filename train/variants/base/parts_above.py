"""Parts of a batch for rules that decide pair by pair: as many rows at a time as have so many pairs.

A threshold may let half of all pairs through at the start of training and one in a thousand at its end: parts
of a fixed number of rows would be too large for memory at first, or too small for speed later on.
"""

from collections.abc import Iterator

from torch import Tensor

from ...backends.sources import block_bytes, block_rows
from ...pairs import Pairs
from .products import prefers_matrices
from .rows import PART_ROWS, Batch

PAIR_SHARE = 1 / 16  # pairs aimed at, for each byte of a block: about 60 MB of pairs and temporaries on a CPU


def parts_above(batch: Batch, threshold: Tensor | float) -> Iterator[tuple[Batch, Pairs]]:
    """Consecutive parts of ``batch``, each with its pairs strictly above ``threshold`` (a number or [F]).

    The first part is one block of rows; a further one has as many rows as would have :data:`PAIR_SHARE` of a
    block's bytes in pairs if it were as dense as the one before, but no fewer than a block and no more than
    :data:`PART_ROWS`.
    """
    device = batch.x_centered.device
    least = min(block_rows(batch.num_latents, device), PART_ROWS)
    aim = int(PAIR_SHARE * block_bytes(device))
    start, rows, many = 0, least, True
    while start < batch.num_rows:
        part = batch.of_rows(slice(start, start + rows))
        pairs = part.pre_activations(screened=not many).above(threshold)
        yield part, pairs
        start += part.num_rows
        rows = max(least, min(PART_ROWS, part.num_rows * aim // max(1, len(pairs))))
        many = prefers_matrices(pairs)
