"""Rows in eight bits, and products of them: a screen at twice the speed of bfloat16, with wider bounds.

A row x is stored as integers of -127 to 127 times one scale, max|x| / 127. Sums of their products are exact
in 32 bits; as scores they are scaled and cut to bfloat16.

Legend: n rows, B rows of the batch, D model width, F latents.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.compile import compiled, compiled_sum
from ..kernels.scratch import borrowed
from ..kernels.threads import even_part, run_parts
from .bounds import SMALLEST_NORM, RowNorms
from .float_bits import LOWEST, as_float, bfloat16_bits, float_of_key, key
from .scan import CHUNK

LARGEST_CODE = 127
TILE_LATENTS = 512  # whose sums of 512 rows are 1 MB: still in the cache when they become scores
SMALLEST_SCALED = np.float32(1e-30)  # of a row's largest value; codes of smaller rows are 0


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Rows as integers. ``code``: int8 [n, D]; ``scale``: float32 [n]; ``norms``: of the rows, and of what
    ``scale * code`` leaves out.
    """

    code: Tensor
    scale: Tensor
    norms: RowNorms


def to_codes(x: Tensor, code: Tensor) -> Codes:
    """``x``, float32 [n, D], rounded to the nearest codes, which are written into ``code``, int8 [n, D]."""
    scale, norm, error = (torch.empty(x.shape[0]) for _ in range(3))
    arrays = [t.numpy() for t in (x, code, scale, norm, error)]
    run_parts(lambda first, last: _to_codes(*arrays, first, last), x.shape[0], even_part(x.shape[0]))
    upwards = 1 + (x.shape[1] + 8) * 2.0**-23  # the sums are float32 themselves, and so is scale * code
    norm.mul_(upwards).add_(SMALLEST_NORM)
    error.mul_(upwards).add_(norm, alpha=2.0**-22).add_(SMALLEST_NORM)
    return Codes(code=code, scale=scale, norms=RowNorms(norm=norm, error=error))


def scores(x: Codes, W: Codes, start: int, stop: int, bias: Any, out: Tensor, tops: Any) -> None:
    """x W.T of rows ``start`` to ``stop - 1`` of ``x``, into ``out``, bfloat16 [stop - start, F].

    ``tops``, of :func:`.scan.top_of_chunks` with ``bias``, is made along the way.
    """
    rows, num_latents = x.code[start:stop], W.code.shape[0]
    bits, row_scale = out.view(torch.uint16).numpy(), x.scale[start:stop].numpy()
    with borrowed(stop - start, min(TILE_LATENTS, num_latents), dtype=torch.int32) as buffer:
        for first in range(0, num_latents, TILE_LATENTS):
            codes, scale = W.code[first : first + TILE_LATENTS], W.scale[first : first + TILE_LATENTS]
            sums = buffer.view(-1)[: len(rows) * len(codes)].view(len(rows), len(codes))
            torch._int_mm(rows, codes.T, out=sums)
            _to_scores(sums.numpy(), row_scale, scale.numpy(), bias, first, bits, tops)


@compiled
def _to_codes(x: Any, code: Any, scale: Any, norm: Any, error: Any, first: int, last: int) -> None:
    for row in range(first, last):
        largest = np.int32(0)
        for j in range(x.shape[1]):
            largest = max(largest, key(abs(x[row, j])))
        most = float_of_key(largest)
        per_code, codes_per = np.float32(0), np.float32(0)
        if most >= SMALLEST_SCALED:
            per_code = most / np.float32(LARGEST_CODE)
            codes_per = np.float32(LARGEST_CODE) / most
        scale[row] = per_code
        for j in range(x.shape[1]):
            code[row, j] = np.int8(np.rint(x[row, j] * codes_per))
        _norms(x[row], code[row], per_code, norm[row : row + 1], error[row : row + 1])


@compiled_sum
def _norms(x: Any, code: Any, scale: Any, norm: Any, error: Any) -> None:
    squares = np.float32(0)
    errors = np.float32(0)
    for j in range(x.shape[0]):
        left_out = x[j] - scale * np.float32(code[j])
        squares += x[j] * x[j]
        errors += left_out * left_out
    norm[0] = np.sqrt(squares)
    error[0] = np.sqrt(errors)


@compiled
def _to_scores(sums: Any, row_scale: Any, scale: Any, bias: Any, first: int, bits: Any, tops: Any) -> None:
    """Of the latents from ``first`` on, whose ``sums`` and ``scale`` these are."""
    for row in range(sums.shape[0]):
        of_row = row_scale[row]
        for start in range(0, sums.shape[1], CHUNK):
            top = LOWEST
            if start + CHUNK <= sums.shape[1]:
                for j in range(CHUNK):
                    i = np.uintp(start + j)  # an index that could be negative keeps this from vector code
                    latent = np.uintp(first + start + j)
                    cut = bfloat16_bits(np.float32(sums[row, i]) * (of_row * scale[i]))
                    bits[row, latent] = cut
                    top = max(top, key(as_float(cut) + bias[latent]))
            else:
                for j in range(start, sums.shape[1]):
                    cut = bfloat16_bits(np.float32(sums[row, j]) * (of_row * scale[j]))
                    bits[row, first + j] = cut
                    top = max(top, key(as_float(cut) + bias[first + j]))
            tops[row, (first + start) // CHUNK] = top
