"""Codes to rows: the sum of each row's decoder directions, weighted by its code values.

Legend: B rows, D model width, F latents, P pairs.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pairs import Pairs
from .compile import compiled
from .dispatch import use_compiled
from .prefetch import prefetch_some
from .threads import even_part, run_parts
from .tiles import row_cuts, tile_rows


def decode(pairs: Pairs, W_dec: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """out[row] = bias + sum over the row's pairs of value * W_dec[latent].

    Args:
        pairs: [B, F].
        W_dec: float32 [F, D].
        bias: [D]; None adds nothing.
        out: [B, D] to write into; None allocates.

    Returns:
        ``out``, float32 [B, D].
    """
    if out is None:
        out = W_dec.new_empty(pairs.num_rows, W_dec.shape[1])
    if not use_compiled(pairs.value, W_dec, bias, out):
        return _decode_torch(pairs, W_dec, bias, out)
    if bias is None:
        out.zero_()
    else:
        out.copy_(bias)
    latent, value, W, o = (t.detach().numpy() for t in (pairs.latent, pairs.value, W_dec, out))
    add_rows_in_tiles(row_cuts(pairs, W.strides[0]), latent, value, W, o)
    return out


def _decode_torch(pairs: Pairs, W_dec: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    decoded = torch.nn.functional.embedding_bag(
        pairs.latent, W_dec, pairs.row_ptr[:-1], mode="sum", per_sample_weights=pairs.value
    )
    return out.copy_(decoded if bias is None else decoded.add_(bias))


def add_rows_in_tiles(cuts: Any, index: Any, scale: Any, source: Any, out: Any) -> None:
    """out[row] += sum over p in cuts[0, row]..cuts[-1, row]-1 of scale[p] * source[index[p]], in that order.

    Args:
        cuts: int64 [T + 1, n], of :func:`.tiles.tile_cuts`. index: int64 [P], ascending within a row.
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

    Four rows at a time, so that ``o`` is read and written a quarter as often. ``ahead`` asks for the next
    ones.
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
