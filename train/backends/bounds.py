"""Strict bounds on how far a cheap score is from the exact pre-activation; no probabilities are involved.

The pre-activation of row x and latent (w, b) is *defined* as p = fl(dot(x, w) + b), in the float32
arithmetic of :meth:`.protocol.Backend.sddmm`. A matrix product gives a score q for x·w. Let u = 2⁻²⁴ and
γ(n) = n u / (1 - n u), which bounds the error of a float32 dot product of length n in any order (Higham 2002,
section 3.1). Then

    float32 product     |q - x·w| <= γ(D) |x||w|
    bfloat16 product    |q - x·w| <= |x - x'||w| + |x'||w - w'| + γ(2D) |x'||w'| + 2⁻⁸ |q|
                        x', w' are rounded to bfloat16; their products are exact in float32, each term is
                        rounded at most twice in the sum, and the sum is rounded to bfloat16 once
    int8 product        |q - x·w| <= |x - x'||w| + |x'||w - w'| + 2⁻⁷ |q|
                        x', w' are integers times a scale; their sums are exact, then scaled and cut to
                        bfloat16
    int8 encoder only   |q - x·w| <= |x||w - w'| + γ(D) |x||w'| + 2⁻²² |q|
                        the second screening (:mod:`.compiled.selection.refine`): float32 x times the integers
                        of w, then scaled
    p itself            |p - (x·w + b)| <= γ(D) |x||w| + u |dot + b|

and therefore |p - (q + b)| <= slack[row] * norm[latent] + relative * |q| + ROUNDING * |q + b| + FLOOR.
ROUNDING covers the rounding of p and of q + b, FLOOR numbers too small for a normal float32. A bias of any
size adds no further error.

Legend: B rows, D model width, F latents.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..selection.errors import NonFiniteError

ROUNDING = np.float32(2.0**-20)
FLOOR = np.float32(1e-30)
LARGEST_PRE_ACTIVATION = 1e38  # leaves room for rounding and for the bounds
SMALLEST_NORM = 1e-16  # the squares of smaller numbers are not normal float32 numbers

Product = Literal["float32", "bfloat16", "int8", "int8 encoder"]
RELATIVE: dict[Product, float] = {
    "float32": 0.0,
    "bfloat16": 2.0**-8,
    "int8": 1.001 * 2.0**-7,
    "int8 encoder": 2.0**-22,
}


@dataclass(frozen=True, kw_only=True)
class ErrorBounds:
    """Error bounds of the scores of B rows and F latents; the module's docstring has the formula.

    Attributes:
        slack: float32 [B].
        norm: float32 [F].
        relative: 0 or more.
    """

    slack: Tensor
    norm: Tensor
    relative: float


@dataclass(frozen=True, kw_only=True)
class RowNorms:
    """``norm`` |x| and ``error`` |x - x'| of every row, float32 [n]; never below the true values.

    They are infinite or NaN where a row is.
    """

    norm: Tensor
    error: Tensor


def product_bounds(x: RowNorms, w: RowNorms, width: int, product: Product) -> ErrorBounds:
    """The bounds of the scores of a matrix product of rows ``x`` and latents ``w``; ``width`` is D."""
    # One number per latent is enough, because rounding changes every latent by nearly the same fraction.
    # For any fraction norm >= |w| and fraction * norm >= |w - w'|.
    fraction = 1.05 * float(w.error.mean() / w.norm.mean())
    norm = torch.maximum(w.norm, w.error / fraction) if fraction else w.norm
    x_rounded = x.norm + x.error
    slack = x.error + x_rounded * (fraction + gamma(2 * width) * (1 + fraction)) + x.norm * gamma(width)
    return ErrorBounds(
        slack=slack * (1 + 1e-5),  # covers the float32 arithmetic of this function and of the scans
        norm=norm,
        relative=RELATIVE[product],
    )


def gamma(n: int) -> float:
    """γ(n) of float32; see the module's docstring."""
    return n * 2.0**-24 / (1 - n * 2.0**-24)


def check_finite_factors(x: RowNorms, W: RowNorms, b_enc: Tensor) -> None:
    """Check that all pre-activations of these rows and latents are certainly finite in float32.

    Raises:
        NonFiniteError: a factor is not finite, or a pre-activation may overflow.
    """
    for values, what in (
        (x.norm, "row {} of the batch"),
        (W.norm, "the encoder weights of latent {latent}"),
        (b_enc, "the encoder bias of latent {latent}"),
    ):
        finite = values.isfinite()
        if not bool(finite.all()):
            place = int((~finite).nonzero()[0])
            message = (
                f"pre-activations cannot be computed: {what.replace('{}', str(place))} is NaN or infinite"
            )
            raise NonFiniteError(message, place if values is not x.norm else None)
    if len(x.norm) and len(W.norm):
        largest = float(x.norm.max()) * float(W.norm.max()) + float(b_enc.abs().max())
        if largest > LARGEST_PRE_ACTIVATION:
            raise NonFiniteError(
                f"pre-activations can overflow: they may reach {largest:.1e}, but only up to "
                f"{LARGEST_PRE_ACTIVATION:.0e} is safe; "
                "scale the activations down, or find out why the encoder grew"
            )
