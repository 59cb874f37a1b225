"""TopK among processes that share the latents: each finds its part of every row's largest, in two steps.

First a process finds some leaders among its own latents, exactly. When it knows how low the leaders of all
processes go, it finds what reaches that. So W processes do the work of one. To select k of its own latents
would be as much work for each as to select k of all.

Legend: B rows, b rows of a piece, F latents of this process, W processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from ....pairs import Pairs
from ...block_pairs import BlockPairs, assemble
from ...protocol import Agree
from ...sources import Encoder
from ...threads import run_parts
from ..bits import keys_of
from .per_row import Leaders, find_leaders, find_reaching, keep_largest
from .scan_largest import least_by_chunks
from .scored_blocks import EncoderScreen, ScoredBlock, opened, part_rows

PIECE_BLOCKS = 8  # blocks of rows whose scores are kept until the processes agree: 256 MiB at most
PART_ROWS = 512  # rows of a part, whose scores are in a core's cache when leaders are looked for


@contextmanager
def search_rows(encoder: Encoder, k: int, num_leaders: int) -> Iterator[Callable[[Agree], Pairs]]:
    """See :meth:`...protocol.Selections.search_rows`."""
    with opened(encoder, num_leaders) as screen:
        yield partial(_search, screen, encoder, k, num_leaders)


def _search(screen: EncoderScreen, encoder: Encoder, k: int, num_leaders: int, agree: Agree) -> Pairs:
    found: list[BlockPairs] = []
    piece = PIECE_BLOCKS * encoder.rows_per_block
    for start in range(0, encoder.num_rows, piece):
        stop = min(start + piece, encoder.num_rows)
        with screen.scored(start, stop, PART_ROWS) as block:
            leaders = _find_leaders(block, num_leaders)
            lowest = torch.from_numpy(leaders.value.min(axis=1))
            found.extend(_reaching(block, leaders, agree(lowest).numpy(), k))
    return assemble(found, encoder.num_latents, encoder.device)


def _find_leaders(block: ScoredBlock, num_leaders: int) -> Leaders:
    found: dict[int, Leaders] = {}

    def find(first: int, last: int) -> None:
        found[first] = find_leaders(block.part(first, last), num_leaders)

    run_parts(find, block.num_rows, part_rows(block.num_rows, PART_ROWS))
    parts = [leaders for _, leaders in sorted(found.items())]
    return Leaders(*(np.concatenate(arrays) for arrays in zip(*(p.arrays for p in parts), strict=True)))


def _reaching(block: ScoredBlock, leaders: Leaders, lowest: Any, k: int) -> list[BlockPairs]:
    """The pairs that can be among the ``k`` largest of all, of which ``lowest`` (float32 [b]) is a bound."""
    found: list[BlockPairs] = []

    def select(first: int, last: int) -> None:
        part = block.part(first, last)
        own = least_by_chunks(part.tops, part.latents, part.slack, part.relative, k)
        least = np.maximum(keys_of(lowest[first:last]), own)

        def find(some: ScoredBlock, candidate: Any, score: Any, count: Any) -> None:
            start = some.first_row - block.first_row
            rows = slice(start, start + some.num_rows)
            bound = least[rows.start - first : rows.stop - first]
            find_reaching(some, leaders.part(rows), bound, candidate, score, count)

        found.append(keep_largest(part, k, find))

    run_parts(select, block.num_rows, part_rows(block.num_rows, PART_ROWS))
    return found
