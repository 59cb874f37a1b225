"""Dot products at the places of a sparse matrix only (sampled dense-dense matrix product).

Legend: B rows, D model width, F latents, P pairs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pairs import Pairs
from .compile import compiled_sum
from .dispatch import use_compiled
from .prefetch import prefetch_some
from .threads import even_part, run_parts
from .tiles import row_cuts, tile_rows

CHUNK_PAIRS = 1 << 14  # gathered at a time by the torch version: 2 x 50 MB at D = 768


def sddmm(pairs: Pairs, g: Tensor, W_dec: Tensor) -> Tensor:
    """<g[row], W_dec[latent]> of every pair, whatever the pairs' values.

    A pair's product does not depend on what other pairs there are, nor on the number of threads: bit for
    bit. With x_centered and W_enc it therefore defines the pre-activations that the selection rules compare.

    Args:
        pairs: [B, F].
        g: float32 [B, D].
        W_dec: float32 [F, D].

    Returns:
        float32 [P].
    """
    if not use_compiled(g, W_dec):
        return _sddmm_torch(pairs, g, W_dec)
    out = g.new_empty(len(pairs))
    latent, *dense = (t.detach().numpy() for t in (pairs.latent, g, W_dec, out))
    dot_products_in_tiles(row_cuts(pairs, dense[1].strides[0]), latent, *dense)
    return out


def _sddmm_torch(pairs: Pairs, g: Tensor, W_dec: Tensor) -> Tensor:
    rows = pairs.rows()
    out = g.new_empty(len(pairs))
    for start in range(0, len(pairs), CHUNK_PAIRS):
        part = slice(start, start + CHUNK_PAIRS)
        torch.sum(g[rows[part]] * W_dec[pairs.latent[part]], dim=1, out=out[part])
    return out


def dot_products_in_tiles(cuts: Any, index: Any, g: Any, W: Any, out: Any) -> None:
    """out[p] = <g[row], W[index[p]]> for p in cuts[0, row]..cuts[-1, row]-1.

    Args:
        cuts: int64 [T + 1, n], of :func:`.tiles.tile_cuts`. index: int64, ascending within a row.
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
    """Of rows ``first`` to ``last - 1``, tile by tile. ``ahead`` asks for the next rows of ``W``."""
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

    Four pairs share each read of ``x``; the last is put in the place of those missing, so that every product
    is added up by the same instructions.
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
