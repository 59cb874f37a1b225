"""The order in which loops over pairs access memory: by latents, and in tiles.

The pairs of a row refer to rows all over a matrix. If many pairs refer to the same matrix rows (codes of dead
latents, or of a penalty at the start of training), loops use tiles: they process the pairs of some hundred
matrix rows, for all rows of pairs, before the next. These matrix rows then stay in the core's own cache,
which is twice as fast as the outer ones. The order of the pairs within a row does not change, so the sums
have the same bits.

Legend: B rows, F latents, P pairs.
"""

from typing import Any

import numpy as np
import torch

from ...pairs import Pairs
from ..plain.products import LatentMajor
from .compile import compiled

TILE_BYTES = 640 * 1024  # of a matrix; most processors have 1 MB or more of such cache per core
LEAST_PAIRS = 4  # of a row in a tile; with fewer, the overhead of tiles exceeds their gain


def tile_cuts(start: Any, stop: Any, index: Any, row_bytes: int) -> Any:
    """Cut rows of pairs into T tiles: int64 [T + 1, n]; T is 1 if tiles do not pay.

    Tile t has the pairs ``cuts[t, r]:cuts[t + 1, r]`` of row r.

    Args:
        start, stop: int64 [n]; row r has the pairs ``start[r]:stop[r]``.
        index: int64, the matrix row of each pair, ascending within a row of pairs.
        row_bytes: the size of a matrix row.
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
    """:func:`tile_cuts` for the rows of ``pairs`` [B, F] and a matrix with a row per latent; kept in them."""

    def cut() -> Any:
        row_ptr = pairs.row_ptr.numpy()
        return tile_cuts(row_ptr[:-1], row_ptr[1:], pairs.latent.numpy(), row_bytes)

    return pairs.once(("row_cuts", row_bytes), cut)


def latent_cuts(pairs: Pairs, row_bytes: int) -> Any:
    """:func:`tile_cuts` for the latents of ``pairs`` and a matrix with a row per row; kept in them."""

    def cut() -> Any:
        order = by_latent(pairs)
        latent_ptr = order.latent_ptr.numpy()
        return tile_cuts(latent_ptr[:-1], latent_ptr[1:], order.row.numpy(), row_bytes)

    return pairs.once(("latent_cuts", row_bytes), cut)


def tile_rows(row_bytes: int) -> int:
    """The number of matrix rows of a tile, and of the rows of pairs that a thread takes at a time."""
    return max(1, TILE_BYTES // row_bytes)


def by_latent(pairs: Pairs) -> LatentMajor:
    """Transpose the places of ``pairs`` by a counting sort; the result is kept in ``pairs``."""
    return pairs.once("by_latent", lambda: _sort_by_latent(pairs))


def _sort_by_latent(pairs: Pairs) -> LatentMajor:
    latent_ptr = pairs.latent.new_zeros(pairs.num_latents + 1)
    row, pair = torch.empty_like(pairs.latent), torch.empty_like(pairs.latent)
    tensors = (pairs.row_ptr, pairs.latent, latent_ptr, row, pair)
    _counting_sort(*[t.numpy() for t in tensors])
    return LatentMajor(latent_ptr=latent_ptr, row=row, pair=pair)


@compiled
def _counting_sort(row_ptr: Any, latent: Any, latent_ptr: Any, row: Any, pair: Any) -> None:
    """Write ``latent_ptr`` (zeros at first), ``row`` and ``pair`` of :class:`LatentMajor`.

    Entry i of ``latent_ptr`` first counts the pairs of latent i, then is the place of its next pair.
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
    """The matrix rows where tiles begin, and the end: each tile has ``most`` of the rows that are used."""
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
