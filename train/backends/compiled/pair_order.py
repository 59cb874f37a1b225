"""The order in which work on pairs walks through memory: by latents, and in tiles.

Pairs lead all over a matrix. Where a few rows of pairs lead to the same matrix row again and again (codes of
a loss on dead latents, codes of a penalty at the start of training) the pairs of some hundred matrix rows are
worked off at a time, for all rows of pairs, before the next ones: those matrix rows then stay in a core's own
cache, which is twice as fast as the outer ones. The order of the pairs of a row does not change, and so no
sum does either.

Legend: B rows, F latents, P pairs.
"""

from typing import Any

import numpy as np
import torch

from ...pairs import Pairs
from ..plain.products import LatentMajor
from .compile import compiled

TILE_BYTES = 640 * 1024  # of a matrix; most processors have 1 MB or more of such cache a core
LEAST_PAIRS = 4  # of a row in a tile: with fewer, starting over takes longer than the outer caches do


def tile_cuts(start: Any, stop: Any, index: Any, row_bytes: int) -> Any:
    """Where each row of pairs enters the tiles: int64 [T + 1, n]; with T = 1 when tiles do not pay.

    Args:
        start, stop: int64 [n]; row r has the pairs ``start[r]:stop[r]``.
        index: int64, the matrix row of each pair, ascending within a row of pairs.
        row_bytes: of a row of the matrix.
    """
    whole = np.stack([start, stop])
    count = stop - start
    per_row = float(count.sum()) / max(1, int(np.count_nonzero(count)))
    if per_row < 2 * LEAST_PAIRS:
        return whole
    edges = _edges(start, stop, index, tile_rows(row_bytes))
    if len(edges) < 3 or per_row < LEAST_PAIRS * (len(edges) - 1):
        return whole
    cuts = np.empty((len(edges), len(start)), np.int64)
    _cut(start, stop, index, edges, cuts)
    return cuts


def row_cuts(pairs: Pairs, row_bytes: int) -> Any:
    """:func:`tile_cuts` of the rows of ``pairs`` [B, F], once; the matrix has a row for each latent."""

    def cut() -> Any:
        row_ptr = pairs.row_ptr.numpy()
        return tile_cuts(row_ptr[:-1], row_ptr[1:], pairs.latent.numpy(), row_bytes)

    return pairs.once(("row_cuts", row_bytes), cut)


def latent_cuts(pairs: Pairs, row_bytes: int) -> Any:
    """:func:`tile_cuts` of the latents of ``pairs``, once; the matrix has a row for each of their rows."""

    def cut() -> Any:
        order = by_latent(pairs)
        latent_ptr = order.latent_ptr.numpy()
        return tile_cuts(latent_ptr[:-1], latent_ptr[1:], order.row.numpy(), row_bytes)

    return pairs.once(("latent_cuts", row_bytes), cut)


def tile_rows(row_bytes: int) -> int:
    """Rows of a tile, and of what is worked on with it."""
    return max(1, TILE_BYTES // row_bytes)


def by_latent(pairs: Pairs) -> LatentMajor:
    """Transpose the places of ``pairs`` by a counting sort, once."""
    return pairs.once("by_latent", lambda: _counting_sorted(pairs))


def _counting_sorted(pairs: Pairs) -> LatentMajor:
    latent_ptr = pairs.latent.new_zeros(pairs.num_latents + 1)
    row, pair = torch.empty_like(pairs.latent), torch.empty_like(pairs.latent)
    tensors = (pairs.row_ptr, pairs.latent, latent_ptr, row, pair)
    _counting_sort(*[t.numpy() for t in tensors])
    return LatentMajor(latent_ptr=latent_ptr, row=row, pair=pair)


@compiled
def _counting_sort(row_ptr: Any, latent: Any, latent_ptr: Any, row: Any, pair: Any) -> None:
    """``latent_ptr`` comes as zeros. Its entry i first counts latent i, then is where latent i's next pair
    goes.
    """
    num_latents = latent_ptr.shape[0] - 1
    for p in range(latent.shape[0]):
        latent_ptr[latent[p]] += 1
    before = 0
    for i in range(num_latents + 1):
        count = latent_ptr[i]
        latent_ptr[i] = before
        before += count
    for r in range(row_ptr.shape[0] - 1):
        for p in range(row_ptr[r], row_ptr[r + 1]):
            place = latent_ptr[latent[p]]
            row[place] = r
            pair[place] = p
            latent_ptr[latent[p]] = place + 1
    for i in range(num_latents, 0, -1):
        latent_ptr[i] = latent_ptr[i - 1]
    latent_ptr[0] = 0


@compiled
def _edges(start: Any, stop: Any, index: Any, most: int) -> Any:
    """Matrix rows where tiles begin, and one past the last: ``most`` of the matrix rows in use in each."""
    last = 0
    for row in range(start.shape[0]):
        if stop[row] > start[row]:
            last = max(last, index[stop[row] - 1])
    used = np.zeros(last + 1, np.bool_)
    for row in range(start.shape[0]):
        for p in range(start[row], stop[row]):
            used[index[p]] = True
    edges = np.empty(2 + (last + 1) // most, np.int64)
    edges[0] = 0
    num_edges, count = 1, 0
    for i in range(last + 1):
        if used[i]:
            if count == most:
                edges[num_edges] = i
                num_edges += 1
                count = 0
            count += 1
    edges[num_edges] = last + 1
    return edges[: num_edges + 1]


@compiled
def _cut(start: Any, stop: Any, index: Any, edges: Any, cuts: Any) -> None:
    for row in range(start.shape[0]):
        p = start[row]
        cuts[0, row] = p
        for tile in range(1, edges.shape[0]):
            while p < stop[row] and index[p] < edges[tile]:
                p += 1
            cuts[tile, row] = p
