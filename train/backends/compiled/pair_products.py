"""Products over pairs: dot products at the pairs, decoding into rows, sums over the pairs of each latent.

Legend: B rows, D model width, F latents, P pairs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...pairs import Pairs
from ..threads import even_part, run_parts
from .compile import compiled, compiled_sum
from .pair_order import by_latent, latent_cuts, row_cuts, tile_rows
from .prefetch import prefetch_some


def sddmm(pairs: Pairs, g: Tensor, W: Tensor) -> Tensor:
    """See :meth:`..protocol.Backend.sddmm`. The number of threads does not change a bit either."""
    g, W = g.contiguous(), W.contiguous()
    out = g.new_empty(len(pairs))
    latent, *dense = (t.detach().numpy() for t in (pairs.latent, g, W, out))
    dot_products_in_tiles(row_cuts(pairs, dense[1].strides[0]), latent, *dense)
    return out


def dot_products_in_tiles(cuts: Any, index: Any, g: Any, W: Any, out: Any) -> None:
    """out[p] = <g[row], W[index[p]]> for p in cuts[0, row]..cuts[-1, row]-1.

    Args:
        cuts: int64 [T + 1, n], from :func:`.pair_order.tile_cuts`. index: int64, ascending within a row.
        g: float32 [n, D]. W: float32 [m, D].
    """
    in_tiles = len(cuts) > 2
    size = even_part(len(g))
    run_parts(
        lambda first, last: _dot_products(cuts, index, g, W, out, not in_tiles, first, last),
        len(g),
        min(size, tile_rows(W.strides[0])) if in_tiles else size,
    )


@compiled_sum
def _dot_products(
    cuts: Any, index: Any, g: Any, W: Any, out: Any, ahead: bool, first: int, last: int
) -> None:
    """Compute rows ``first`` to ``last - 1``, tile by tile. ``ahead`` prefetches the next rows of ``W``."""
    for tile in range(cuts.shape[0] - 1):
        for row in range(first, last):
            if ahead and row + 1 < last:
                prefetch_some(
                    W, index, cuts[tile, row + 1], min(cuts[tile, row + 1] + 4, cuts[tile + 1, row + 1])
                )
            dot_products_of_row(g[row], index, W, out, ahead, cuts[tile, row], cuts[tile + 1, row])


@compiled_sum
def dot_products_of_row(x: Any, index: Any, W: Any, out: Any, ahead: bool, first: int, stop: int) -> None:
    """out[p] = <x, W[index[p]]> for p in first..stop-1.

    Four pairs share each read of ``x``. The last pair fills the places of missing ones, so that the same
    instructions add up every product.
    """
    for p in range(first, stop, 4):
        p1, p2, p3 = min(p + 1, stop - 1), min(p + 2, stop - 1), min(p + 3, stop - 1)
        if ahead:
            prefetch_some(W, index, p + 4, min(p + 8, stop))
        a, b, c, d = W[index[p]], W[index[p1]], W[index[p2]], W[index[p3]]
        s = t = u = v = np.float32(0)
        for j in range(x.shape[0]):
            s += x[j] * a[j]
            t += x[j] * b[j]
            u += x[j] * c[j]
            v += x[j] * d[j]
        out[p3] = v
        out[p2] = u
        out[p1] = t
        out[p] = s


def decode(pairs: Pairs, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :meth:`..protocol.Backend.decode`."""
    out = W.new_empty(pairs.num_rows, W.shape[1])
    if bias is None:
        out.zero_()
    else:
        out.copy_(bias)
    add_decoded(pairs, W, out)
    return out


def add_decoded(pairs: Pairs, W: Tensor, sums: Tensor) -> None:
    """See :meth:`..protocol.Backend.add_decoded`."""
    tensors = (pairs.latent, pairs.value.contiguous(), W.contiguous(), sums)
    latent, value, *dense = (t.detach().numpy() for t in tensors)
    add_rows_in_tiles(row_cuts(pairs, dense[0].strides[0]), latent, value, *dense)


def add_rows_in_tiles(cuts: Any, index: Any, scale: Any, source: Any, out: Any) -> None:
    """out[row] += sum over p in cuts[0, row]..cuts[-1, row]-1 of scale[p] * source[index[p]], in that order.

    Args:
        cuts: int64 [T + 1, n], from :func:`.pair_order.tile_cuts`. index: int64 [P], ascending within a row.
        scale: float32 [P]. source: float32 [m, D]. out: float32 [n, D].
    """
    in_tiles = len(cuts) > 2
    rows = np.flatnonzero(cuts[-1] > cuts[0])
    size = even_part(len(rows))
    run_parts(
        lambda first, last: _add_rows(cuts, rows[first:last], index, scale, source, out, not in_tiles),
        len(rows),
        min(size, tile_rows(source.strides[0])) if in_tiles else size,
    )


@compiled
def _add_rows(cuts: Any, rows: Any, index: Any, scale: Any, source: Any, out: Any, ahead: bool) -> None:
    for tile in range(cuts.shape[0] - 1):
        for row in rows:
            _add_scaled_rows(out[row], index, scale, source, ahead, cuts[tile, row], cuts[tile + 1, row])


@compiled
def _add_scaled_rows(o: Any, index: Any, scale: Any, source: Any, ahead: bool, first: int, last: int) -> None:
    """o += sum over i in first..last-1 of scale[i] * source[index[i]], in that order.

    It adds four rows at a time, so that ``o`` is read and written a quarter as often. ``ahead`` prefetches
    the next rows.
    """
    i = first
    while i + 4 <= last:
        if ahead:
            prefetch_some(source, index, i + 4, min(i + 8, last))
        a, b, c, d = scale[i], scale[i + 1], scale[i + 2], scale[i + 3]
        s, t, u, v = source[index[i]], source[index[i + 1]], source[index[i + 2]], source[index[i + 3]]
        for j in range(o.shape[0]):
            o[j] = (((o[j] + a * s[j]) + b * t[j]) + c * u[j]) + d * v[j]
        i += 4
    while i < last:
        a, s = scale[i], source[index[i]]
        for j in range(o.shape[0]):
            o[j] += a * s[j]
        i += 1


def accumulate_by_latent(pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
    """See :meth:`..protocol.Backend.accumulate_by_latent`. Pairs are added by ascending rows.

    The number of threads does not change a bit, because one thread adds up each row of ``out``.
    """
    order = by_latent(pairs)
    scale = coefficient.index_select(0, order.pair)
    whole = out.contiguous()
    row, *rest = (t.detach().numpy() for t in (order.row, scale, source.contiguous(), whole))
    add_rows_in_tiles(latent_cuts(pairs, rest[1].strides[0]), row, *rest)
    if whole is not out:
        out.copy_(whole)


def sum_per_latent(pairs: Pairs, values: Tensor) -> Tensor:
    """See :meth:`..protocol.Backend.sum_per_latent`. One thread adds up all pairs, in float64."""
    summed = torch.bincount(pairs.latent, weights=values, minlength=pairs.num_latents)
    return summed.to(values.dtype)
