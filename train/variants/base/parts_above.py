"""Split a batch into parts of about equally many active pairs, for rules that compare with thresholds.

At the start of training half of all pairs may be above their threshold, at its end one in a thousand: parts
with a fixed number of rows would need too much memory first, or be too small to be fast later.
"""

from collections.abc import Iterator

from torch import Tensor

from ...backends.sources import block_bytes, block_rows
from ...pairs import Pairs
from .products import prefers_matrices
from .rows import PART_ROWS, Batch

PAIR_SHARE = 1 / 16  # target pairs per byte of a block: about 60 MB of pairs and temporaries on a CPU


def parts_above(batch: Batch, threshold: Tensor | float) -> Iterator[tuple[Batch, Pairs]]:
    """Yield consecutive parts of ``batch``, each with its pairs strictly above ``threshold`` (number or [F]).

    The first part is one block of rows. The number of rows of each further part assumes the density of the
    part before and aims at :data:`PAIR_SHARE` pairs per byte of a block; it is at least one block, at most
    :data:`PART_ROWS` rows.
    """
    device = batch.x_centered.device
    least = min(block_rows(batch.shards.total, device), PART_ROWS)
    aim = int(PAIR_SHARE * block_bytes(device))
    start, rows, many = 0, least, True
    while start < batch.num_rows:
        part = batch.of_rows(slice(start, start + rows))
        pairs = part.pre_activations(screened=not many).above(threshold)
        yield part, pairs
        start += part.num_rows
        rows = max(least, min(PART_ROWS, part.num_rows * aim // max(1, batch.shards.add_up(len(pairs)))))
        many = prefers_matrices(pairs, batch.shards)
