"""How far a cheap score can be from the pre-activation it stands for: strict bounds, no probabilities.

The pre-activation of row x and latent (w, b) is *defined* as p = fl(dot(x, w) + b), in the float32
arithmetic of :func:`..kernels.sddmm`. A matrix product gives a score q for x·w. With u = 2⁻²⁴ and γ(n) = n u
/ (1 - n u), the bound on the error of a float32 dot product of length n in any order (Higham 2002, section
3.1):

    float32 product     |q - x·w| <= γ(D) |x||w|
    bfloat16 product    |q - x·w| <= |x - x'||w| + |x'||w - w'| + γ(2D) |x'||w'| + 2⁻⁸ |q|
                        x', w' are rounded to bfloat16; their products are exact in float32, a term is
                        rounded twice at most while it is added up, and the sum is rounded to bfloat16 once
    int8 product        |q - x·w| <= |x - x'||w| + |x'||w - w'| + 2⁻⁷ |q|
                        x', w' are integers times a scale (:mod:`.int8`); their sums are exact, and are cut
                        to bfloat16 once they are scaled
    int8 encoder only   |q - x·w| <= |x||w - w'| + γ(D) |x||w'| + 2⁻²² |q|
                        for a second look (:mod:`.narrow`): float32 x times the integers of w, then scaled
    p itself            |p - (x·w + b)| <= γ(D) |x||w| + u |dot + b|

so that |p - (q + b)| <= slack[row] * norm[latent] + relative * |q| + ROUNDING * |q + b| + FLOOR, where
ROUNDING covers the roundings of p and of q + b, and FLOOR the numbers too small for a normal float32. The
bias adds no error of its own, however large it is.

Legend: B rows, D model width, F latents.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...threads import even_part, run_parts
from ..bits import as_float
from ..compile import compiled_sum

ROUNDING = np.float32(2.0**-20)
FLOOR = np.float32(1e-30)
SMALLEST_NORM = 1e-16  # squares below it are no normal float32 numbers

Product = Literal["float32", "bfloat16", "int8", "int8 encoder"]
RELATIVE: dict[Product, float] = {
    "float32": 0.0,
    "bfloat16": 2.0**-8,
    "int8": 1.001 * 2.0**-7,
    "int8 encoder": 2.0**-22,
}


@dataclass(frozen=True, kw_only=True)
class ErrorBounds:
    """Of the scores of B rows and F latents; see the top of this file.

    Attributes:
        slack: float32 [B].
        norm: float32 [F].
        relative: 0 or more.
    """

    slack: Tensor
    norm: Tensor
    relative: float


def no_error(num_rows: int, num_latents: int) -> ErrorBounds:
    """For scores that are the pre-activations themselves."""
    return ErrorBounds(slack=torch.zeros(num_rows), norm=torch.zeros(num_latents), relative=0.0)


@dataclass(frozen=True, kw_only=True)
class RowNorms:
    """|x| and |x - x'| of every row, float32 [n], neither below its true value; infinite or NaN where a row
    is.
    """

    norm: Tensor
    error: Tensor


def row_norms(x: Tensor, rounded: Tensor | None) -> RowNorms:
    """Of ``x``, float32 [n, D], and of what ``rounded``, the same in bfloat16, leaves out. None leaves out
    nothing.
    """
    norm, error = torch.zeros(x.shape[0]), torch.zeros(x.shape[0])
    if rounded is None:
        arrays = (x.numpy(), norm.numpy())
        run_parts(lambda first, last: _norms(*arrays, first, last), x.shape[0], even_part(x.shape[0]))
    else:
        both = (x.numpy(), rounded.view(torch.uint16).numpy(), norm.numpy(), error.numpy())
        run_parts(
            lambda first, last: _norms_and_errors(*both, first, last), x.shape[0], even_part(x.shape[0])
        )
    upwards = 1 + (x.shape[1] + 8) * 2.0**-23  # the sums are float32 themselves
    norm.mul_(upwards).add_(SMALLEST_NORM)
    return RowNorms(norm=norm, error=error if rounded is None else error.mul_(upwards).add_(SMALLEST_NORM))


def product_bounds(x: RowNorms, w: RowNorms, width: int, product: Product) -> ErrorBounds:
    """Bounds on the scores of a matrix product of rows ``x`` and latents ``w``; ``width`` is D."""
    # One number per latent instead of two: rounding leaves out nearly the same fraction of every latent.
    # Whatever the fraction, norm >= |w| and fraction * norm >= |w - w'|.
    fraction = 1.05 * float(w.error.mean() / w.norm.mean())
    norm = torch.maximum(w.norm, w.error / fraction) if fraction else w.norm
    x_rounded = x.norm + x.error
    slack = x.error + x_rounded * (fraction + _gamma(2 * width) * (1 + fraction)) + x.norm * _gamma(width)
    return ErrorBounds(
        slack=slack * (1 + 1e-5),  # for the float32 arithmetic of this function and of the scans
        norm=norm,
        relative=RELATIVE[product],
    )


def _gamma(n: int) -> float:
    return n * 2.0**-24 / (1 - n * 2.0**-24)


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
