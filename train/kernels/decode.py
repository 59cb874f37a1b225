"""Codes to rows: the sum of each row's decoder directions, weighted by its code values.

Legend: B rows, D model width, F latents, P pairs.
"""

from typing import Any

import torch
from torch import Tensor

from ..pairs import Pairs
from .compile import compiled
from .dispatch import use_compiled
from .prefetch import prefetch_row
from .threads import even_part, run_parts


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
    arrays = [t.detach().numpy() for t in (pairs.row_ptr, pairs.latent, pairs.value, W_dec, start, out)]
    run_parts(
        lambda first, last: _decode_rows(*arrays, first, last), pairs.num_rows, even_part(pairs.num_rows)
    )
    return out


def _decode_torch(pairs: Pairs, W_dec: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    decoded = torch.nn.functional.embedding_bag(
        pairs.latent, W_dec, pairs.row_ptr[:-1], mode="sum", per_sample_weights=pairs.value
    )
    return out.copy_(decoded if bias is None else decoded.add_(bias))


@compiled
def _decode_rows(
    row_ptr: Any, latent: Any, value: Any, W: Any, bias: Any, out: Any, first: Any, last: Any
) -> None:
    for row in range(first, last):
        o = out[row]
        o[:] = bias
        add_scaled_rows(o, latent, value, W, row_ptr[row], row_ptr[row + 1])


@compiled
def add_scaled_rows(o: Any, index: Any, scale: Any, source: Any, first: Any, last: Any) -> None:
    """o += sum over i in first..last-1 of scale[i] * source[index[i]], in that order.

    Four rows at a time, so that ``o`` is read and written a quarter as often.
    """
    i = first
    while i + 4 <= last:
        for ahead in range(i + 4, min(i + 8, last)):
            prefetch_row(source, index[ahead])
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
