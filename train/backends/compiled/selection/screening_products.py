"""The screening products: float32, bfloat16, and int8 at twice the speed of bfloat16.

In int8 a row x is stored as integers from -127 to 127, its codes, times the scale max|x| / 127. Sums of
products of codes are exact in 32 bits; they are scaled and cut to bfloat16 scores.

Legend: n rows, B rows of the batch, D model width, F latents.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...bounds import SMALLEST_NORM, ErrorBounds, Product, RowNorms, product_bounds
from ...scratch import borrowed
from ...threads import even_part, run_parts
from ..bits import LOWEST, as_float, bfloat16_bits, float_of_key, key
from ..compile import compiled, compiled_sum
from .scan import CHUNK, top_of_chunks

LARGEST_CODE = 127
TILE_LATENTS = 512  # with 512 rows the sums take 1 MB and stay in the cache until they become scores
SMALLEST_SCALED = np.float32(1e-30)  # rows whose largest value is smaller get codes of 0

Score = Callable[[int, int, Any, Tensor, Any], object]


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Rows rounded to ``scale * code``: ``code`` int8 [n, D], ``scale`` float32 [n], ``norms`` of rows and
    rounding errors.
    """

    code: Tensor
    scale: Tensor
    norms: RowNorms


@dataclass(frozen=True, kw_only=True)
class ProductFactors:
    """x [B, D] and W [F, D], prepared for a product.

    Attributes:
        dtype: the dtype of the scores.
        score: ``score(start, stop, bias, out, tops)`` writes the scores of some rows to ``out`` [b, F], and
            the :func:`.scan.top_of_chunks` of them and ``bias`` to ``tops``.
        x_norms, W_norms: the norms of the rows of both, and of their rounding errors.
        W_codes: the encoder's int8 codes, if the product is int8.
    """

    product: Product
    dtype: torch.dtype
    score: Score
    x_norms: RowNorms
    W_norms: RowNorms
    width: int
    W_codes: Codes | None = None

    def bounds(self) -> ErrorBounds:
        """The bounds of the errors of the scores."""
        return product_bounds(self.x_norms, self.W_norms, self.width, self.product)

    def narrow_bounds(self) -> ErrorBounds:
        """The bounds of the errors of float32 rows times ``W_codes``."""
        x_norms = RowNorms(norm=self.x_norms.norm, error=torch.zeros_like(self.x_norms.error))
        return product_bounds(x_norms, self.W_norms, self.width, "int8 encoder")


@contextmanager
def factors(product: Product, x: Tensor, W: Tensor) -> Iterator[ProductFactors]:
    """Prepare float32 ``x`` and ``W`` for a product; it borrows memory for rounded copies."""
    width = x.shape[1]
    if product == "float32":
        # Below the highest precision torch itself may round the factors to bfloat16.
        rounds = torch.get_float32_matmul_precision() != "highest"
        norms = [row_norms(rows, rows.bfloat16() if rounds else None) for rows in (x, W)]
        yield ProductFactors(
            product=product, dtype=x.dtype, score=partial(_score, x, W),
            x_norms=norms[0], W_norms=norms[1], width=width,
        )  # fmt: skip
        return
    dtype = torch.int8 if product == "int8" else torch.bfloat16
    with borrowed(*x.shape, dtype=dtype) as x_, borrowed(*W.shape, dtype=dtype) as W_:
        if product == "int8":
            x_codes, W_codes = to_codes(x, x_), to_codes(W, W_)
            yield ProductFactors(
                product=product, dtype=torch.bfloat16, score=partial(int8_scores, x_codes, W_codes),
                x_norms=x_codes.norms, W_norms=W_codes.norms, width=width, W_codes=W_codes,
            )  # fmt: skip
        else:
            x_.copy_(x)
            W_.copy_(W)
            yield ProductFactors(
                product=product, dtype=torch.bfloat16, score=partial(_score, x_, W_),
                x_norms=row_norms(x, x_), W_norms=row_norms(W, W_), width=width,
            )  # fmt: skip


def _score(x: Tensor, W: Tensor, start: int, stop: int, bias: Any, out: Tensor, tops: Any) -> None:
    torch.mm(x[start:stop], W.T, out=out)
    top_of_chunks(as_array(out), bias, tops)


def as_array(scores: Tensor) -> Any:
    """Scores as numpy arrays for compiled loops: float32, or the bits of bfloat16 in uint16."""
    return (scores.view(torch.uint16) if scores.dtype == torch.bfloat16 else scores).numpy()


def to_codes(x: Tensor, code: Tensor) -> Codes:
    """Round ``x``, float32 [n, D], to the nearest codes, which are written to ``code``, int8 [n, D]."""
    scale, norm, error = (torch.empty(x.shape[0]) for _ in range(3))
    arrays = [t.numpy() for t in (x, code, scale, norm, error)]
    run_parts(lambda first, last: _to_codes(*arrays, first, last), x.shape[0], even_part(x.shape[0]))
    upwards = 1 + (x.shape[1] + 8) * 2.0**-23  # covers the rounding of the float32 sums and of scale * code
    norm.mul_(upwards).add_(SMALLEST_NORM)
    error.mul_(upwards).add_(norm, alpha=2.0**-22).add_(SMALLEST_NORM)
    return Codes(code=code, scale=scale, norms=RowNorms(norm=norm, error=error))


def int8_scores(x: Codes, W: Codes, start: int, stop: int, bias: Any, out: Tensor, tops: Any) -> None:
    """Write the scores of rows ``start`` to ``stop - 1`` of ``x`` to ``out``, bfloat16 [stop - start, F].

    Their :func:`.scan.top_of_chunks` with ``bias`` are written to ``tops`` in the same sweep.
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
        _code_norms(x[row], code[row], per_code, norm[row : row + 1], error[row : row + 1])


@compiled_sum
def _code_norms(x: Any, code: Any, scale: Any, norm: Any, error: Any) -> None:
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
    """Turn ``sums`` of the latents from ``first`` on, which have ``scale``, into scores and ``tops``."""
    for row in range(sums.shape[0]):
        of_row = row_scale[row]
        for start in range(0, sums.shape[1], CHUNK):
            top = LOWEST
            if start + CHUNK <= sums.shape[1]:
                for j in range(CHUNK):
                    i = np.uintp(start + j)  # an index that could be negative prevents vector instructions
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


def row_norms(x: Tensor, rounded: Tensor | None) -> RowNorms:
    """The norms of the rows of ``x``, float32 [n, D], and of x - ``rounded``, its bfloat16 copy (None: 0)."""
    norm, error = torch.zeros(x.shape[0]), torch.zeros(x.shape[0])
    if rounded is None:
        arrays = (x.numpy(), norm.numpy())
        run_parts(lambda first, last: _norms(*arrays, first, last), x.shape[0], even_part(x.shape[0]))
    else:
        both = (x.numpy(), rounded.view(torch.uint16).numpy(), norm.numpy(), error.numpy())
        run_parts(
            lambda first, last: _norms_and_errors(*both, first, last), x.shape[0], even_part(x.shape[0])
        )
    upwards = 1 + (x.shape[1] + 8) * 2.0**-23  # covers the rounding of the float32 sums
    norm.mul_(upwards).add_(SMALLEST_NORM)
    return RowNorms(norm=norm, error=error if rounded is None else error.mul_(upwards).add_(SMALLEST_NORM))


@compiled_sum
def _norms(x: Any, norm: Any, first: int, last: int) -> None:
    for row in range(first, last):
        squares = np.float32(0)
        for j in range(x.shape[1]):
            squares += x[row, j] * x[row, j]
        norm[row] = np.sqrt(squares)


@compiled_sum
def _norms_and_errors(x: Any, bits: Any, norm: Any, error: Any, first: int, last: int) -> None:
    for row in range(first, last):
        squares = np.float32(0)
        errors = np.float32(0)
        for j in range(x.shape[1]):
            left_out = x[row, j] - as_float(bits[row, j])
            squares += x[row, j] * x[row, j]
            errors += left_out * left_out
        norm[row] = np.sqrt(squares)
        error[row] = np.sqrt(errors)
