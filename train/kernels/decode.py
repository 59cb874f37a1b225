"""Codes to rows: the sum of each row's decoder directions, weighted by its code values.

Legend: B rows, D model width, F latents, P pairs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..pairs import Pairs
from .compile import compiled
from .dispatch import use_compiled
from .prefetch import prefetch_row
from .threads import even_part, run_parts
from .tiles import tile_cuts, tile_rows


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
    start = W_dec.new_zeros(W_dec.shape[1]) if bias is None else bias.detach()
    tensors = (pairs.row_ptr, pairs.latent, pairs.value, W_dec, out)
    row_ptr, latent, value, W, into = (t.detach().numpy() for t in tensors)
    bias_ = start.numpy()

    def begin(first: int, last: int) -> None:
        into[first:last] = bias_

    add_rows_in_tiles(row_ptr[:-1], row_ptr[1:], latent, value, W, into, begin)
    return out


def _decode_torch(pairs: Pairs, W_dec: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    decoded = torch.nn.functional.embedding_bag(
        pairs.latent, W_dec, pairs.row_ptr[:-1], mode="sum", per_sample_weights=pairs.value
    )
    return out.copy_(decoded if bias is None else decoded.add_(bias))


def add_rows_in_tiles(
    start: Any,
    stop: Any,
    index: Any,
    scale: Any,
    source: Any,
    out: Any,
    begin: Callable[[int, int], None] = lambda first, last: None,
) -> None:
    """out[row] += sum over p in start[row]..stop[row]-1 of scale[p] * source[index[p]], in that order.

    Args:
        start, stop: int64 [n]. index: int64 [P], ascending within a row. scale: float32 [P].
        source: float32 [m, D]. out: float32 [n, D].
        begin: called with the bounds of some rows, by the thread that goes on with them.
    """
    cuts = tile_cuts(start, stop, index, source.strides[0])
    in_tiles = len(cuts) > 2

    def part(first: int, last: int) -> None:
        begin(first, last)
        for tile in range(len(cuts) - 1):
            _add_rows(cuts[tile], cuts[tile + 1], index, scale, source, out, not in_tiles, first, last)

    size = even_part(len(out))
    run_parts(part, len(out), min(size, tile_rows(source.strides[0])) if in_tiles else size)


@compiled
def _add_rows(
    start: Any,
    stop: Any,
    index: Any,
    scale: Any,
    source: Any,
    out: Any,
    ahead: bool,
    first: int,
    last: int,
) -> None:
    for row in range(first, last):
        _add_scaled_rows(out[row], index, scale, source, ahead, start[row], stop[row])


@compiled
def _add_scaled_rows(
    o: Any, index: Any, scale: Any, source: Any, ahead: bool, first: int, last: int
) -> None:
    """o += sum over i in first..last-1 of scale[i] * source[index[i]], in that order.

    Four rows at a time, so that ``o`` is read and written a quarter as often. ``ahead`` asks for the next
    ones.
    """
    i = first
    while i + 4 <= last:
        if ahead:
            for n in range(i + 4, min(i + 8, last)):
                prefetch_row(source, index[n])
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
