"""Rows for the screening product: rounded to bfloat16, with what their rounding can cost.

The screening product adds up bfloat16 products on tensor cores. The products are exact in float32. For every
4, 8 or 16 of them (V100, A100, H100; Fasi et al. 2021) a tensor core aligns the terms and the sum so far to
the largest of them, and may cut off what lies below float32's last bit instead of rounding it. Each of the n
+ 1 terms and the result then lose less than 2⁻²³ of the largest magnitude, which |x'||w'| bounds: n + 2
losses for every n products, at most 1.5 D 2⁻²³ |x'||w'| in all for n = 4. Sums of tiles in float32 add less
than D / 16 roundings. γ(4 D), with u = 2⁻²⁴, exceeds both together. With x', w' the rounded rows, for the
score q of a pair and its pre-activation p = fl(dot + b) of :mod:`.exact`, whose error is at most γ(D) |x||w|
before the bias is added,

    |p - (q + b)| <= |x - x'||w| + |x'||w - w'| + γ(4 D) |x'||w'| + γ(D) |x||w| + ROUNDING |q + b| + FLOOR
                  <= slack[row] * factor[latent] + ROUNDING |q + b| + FLOOR

where factor[latent] = max(|w|, |w - w'| / FRACTION) and slack[row] = |x - x'| + (|x| + |x - x'|) (FRACTION +
γ(4 D) (1 + FRACTION)) + γ(D) |x|. Storing q as a bfloat16 costs another 2⁻⁸ |q|. No probabilities are
involved; the device must also show on random rows that it keeps these bounds (:func:`.screen.keeps_bounds`).
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from ..bounds import SMALLEST_NORM, gamma
from .launch import blocks, kernel, launch, padded, warps_of, whole_rows

FRACTION = 0.0016  # about |w - w'| / |w| of a row whose mantissas are spread evenly
_FRACTION = tl.constexpr(FRACTION)
_SMALLEST_NORM = tl.constexpr(SMALLEST_NORM)


@dataclass(frozen=True, kw_only=True)
class ScreenRows:
    """Rows of one side of the screening product.

    Attributes:
        rounded: bfloat16 [n, D].
        factor: float32 [n]: ``slack`` of rows of the batch, or the bound on a latent's norm; see above.
        norm: float32 [n], not below the norm of the row; infinite or NaN where the row is.
    """

    rounded: Tensor
    factor: Tensor
    norm: Tensor

    def chunk_factors(self, size: int) -> Tensor:
        """The largest factor of every ``size`` rows, float32 [ceil(n / size)]."""
        short = blocks(len(self.factor), size) * size - len(self.factor)
        factor = torch.nn.functional.pad(self.factor, (0, short)) if short else self.factor
        return factor.view(-1, size).amax(1)


@kernel
def to_bfloat16(x):
    """To the nearest bfloat16, to even: through the bits, since Triton's interpreter would cut them off."""
    bits = x.to(tl.int32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@kernel
def upward_norm(row, D: tl.constexpr):
    """The norm of ``row`` [DP], zeros from D on, not below the true value: the sum is float32 itself."""
    return tl.sqrt(tl.sum(row * row)) * (1 + (D + 16) * 1.1920928955078125e-07) + _SMALLEST_NORM


@kernel
def latent_factor(norm, error):
    """|w| and |w - w'| in one number."""
    return tl.maximum(norm, error * (1.00001 / _FRACTION))


@kernel
def _round_kernel(
    rows, rounded, factor, norm, per_norm, per_error,
    LATENTS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DP)
    inside = column < D
    x = tl.load(rows + r * D + column, mask=inside, other=0.0)
    low = to_bfloat16(x)
    tl.store(rounded + r * D + column, low, mask=inside)
    length = upward_norm(x, D)
    error = upward_norm(x - low.to(tl.float32), D)
    tl.store(norm + r, length)
    if LATENTS:
        tl.store(factor + r, latent_factor(length, error))
    else:
        tl.store(factor + r, length * per_norm + error * per_error)


def _rounded(rows: Tensor, latents: bool) -> ScreenRows:
    rows = whole_rows("rows", rows)
    width = rows.shape[1]
    out = ScreenRows(
        rounded=torch.empty_like(rows, dtype=torch.bfloat16),
        factor=rows.new_empty(len(rows)),
        norm=rows.new_empty(len(rows)),
    )
    of_rounded = FRACTION + gamma(4 * width) * (1 + FRACTION)
    margin = 1 + 1e-5  # for the float32 arithmetic of the bounds themselves
    per_norm, per_error = margin * (of_rounded + gamma(width)), margin * (1 + of_rounded)
    launch(
        _round_kernel, (len(rows),), rows, out.rounded, out.factor, out.norm, per_norm, per_error,
        LATENTS=latents, D=width, DP=padded(width), num_warps=warps_of(width),
    )  # fmt: skip
    return out


def round_batch(x: Tensor) -> ScreenRows:
    """Rows of a batch, float32 [B, D]; ``factor`` is their slack."""
    return _rounded(x, latents=False)


def round_latents(W: Tensor) -> ScreenRows:
    """Rows of an encoder, float32 [F, D]. :func:`.adam.adam_step` refreshes them with the same bits."""
    return _rounded(W, latents=True)
