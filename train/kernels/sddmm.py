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
from .prefetch import prefetch_row
from .threads import even_part, run_parts

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
    row_ptr, latent = pairs.row_ptr.numpy(), pairs.latent.numpy()
    arrays = (row_ptr[:-1], row_ptr[1:], latent, g.detach().numpy(), W_dec.detach().numpy(), out.numpy())
    run_parts(
        lambda first, last: dot_products(*arrays, first, last), pairs.num_rows, even_part(pairs.num_rows)
    )
    return out


def _sddmm_torch(pairs: Pairs, g: Tensor, W_dec: Tensor) -> Tensor:
    rows = pairs.rows()
    out = g.new_empty(len(pairs))
    for start in range(0, len(pairs), CHUNK_PAIRS):
        part = slice(start, start + CHUNK_PAIRS)
        torch.sum(g[rows[part]] * W_dec[pairs.latent[part]], dim=1, out=out[part])
    return out


@compiled_sum
def dot_products(start: Any, stop: Any, latent: Any, g: Any, W: Any, out: Any, first: int, last: int) -> None:
    """out[p] = <g[row], W[latent[p]]> for p in start[row]..stop[row]-1, of rows ``first`` to ``last - 1``.

    Two pairs share each read of ``g``; the last of an odd number is paired with itself, so that every
    product is added up by the same instructions.
    """
    for row in range(first, last):
        x = g[row]
        p = start[row]
        while p < stop[row]:
            q = min(p + 1, stop[row] - 1)
            if p + 3 < stop[row]:
                prefetch_row(W, latent[p + 2])
                prefetch_row(W, latent[p + 3])
            v, w = W[latent[p]], W[latent[q]]
            s = np.float32(0)
            t = np.float32(0)
            for j in range(x.shape[0]):
                s += x[j] * v[j]
                t += x[j] * w[j]
            out[q] = t
            out[p] = s
            p += 2
