"""What every selection starts with: the rounded rows, whether to screen at all, and the late check of
numbers.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from ..bounds import LARGEST_PRE_ACTIVATION, RowNorms, check_finite_factors
from ..sources import block_bytes
from .kept_rows import kept_batch
from .launch import kernel, launch, whole_rows
from .rounding import ScreenRows, round_latents
from .screen import SMALLEST_CHUNK, keeps_bounds


@kernel
def _largest(numbers, size, N: tl.constexpr):
    """The largest magnitude of ``numbers``, float64; NaN if one is."""
    lane = tl.arange(0, N)
    most = tl.zeros((N,), tl.float32)
    for start in range(0, size, N):
        value = tl.abs(tl.load(numbers + start + lane, mask=start + lane < size, other=0.0))
        most = tl.where((value > most) | (value != value), value, most)  # a NaN stays: nothing is above it
    bad = tl.sum((most != most).to(tl.int32), axis=0)
    return tl.where(bad > 0, float("nan"), tl.max(tl.where(most != most, 0.0, most), axis=0)).to(tl.float64)


@kernel
def _limits_kernel(
    x_norm, W_norm, bias, count, kept, above, values, out, B, F, A, P, room,
    COUNT: tl.constexpr, KEPT: tl.constexpr, ABOVE: tl.constexpr, POSITIVE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    tl.store(out, _largest(x_norm, B, N))
    tl.store(out + 1, _largest(W_norm, F, N))
    tl.store(out + 2, _largest(bias, F, N))
    lane = tl.arange(0, N)
    if COUNT:
        tl.store(out + 3, tl.load(count).to(tl.float64))
    if KEPT:
        tl.store(out + 4, tl.load(kept).to(tl.float64))
    if ABOVE:
        number = tl.zeros((N,), tl.int32)
        for start in range(0, A, N):
            number += (tl.load(above + start + lane, mask=start + lane < A, other=0) > room).to(tl.int32)
        tl.store(out + 3, tl.sum(number, axis=0).to(tl.float64))
    if POSITIVE:
        number = tl.zeros((N,), tl.int32)
        for start in range(0, P, N):
            number += (tl.load(values + start + lane, mask=start + lane < P, other=0.0) > 0).to(tl.int32)
        tl.store(out + 4, tl.sum(number, axis=0).to(tl.float64))


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors of the pre-activations of one batch.

    Attributes:
        x: float32 [B, D]. W: float32 [F, D]. b: float32 [F].
        x_rows, W_rows: the same, rounded.
    """

    x: Tensor
    W: Tensor
    b: Tensor
    x_rows: ScreenRows
    W_rows: ScreenRows

    def limits(
        self,
        count: Tensor | None = None,
        *,
        kept: Tensor | None = None,
        above: Tensor | None = None,
        room: int = 0,
        values: Tensor | None = None,
    ) -> Tensor:
        """Numbers that the host reads together, on the device: float64 [5].

        The largest norms of rows and latents, and the largest bias, NaN if one is; ``count`` (int64 [1]) or
        how many of ``above`` (int64 [n]) are more than ``room``; ``kept`` (int64 [1]) or how many ``values``
        (float32 [P]) are above 0. What is not asked for is not written.
        """
        out = torch.empty(5, dtype=torch.float64, device=self.x.device)
        unused = self.b
        launch(
            _limits_kernel, (1,), self.x_rows.norm, self.W_rows.norm, self.b,
            *(unused if one is None else one for one in (count, kept, above, values)), out, len(self.x),
            len(self.W), 0 if above is None else len(above), 0 if values is None else len(values), room,
            COUNT=count is not None, KEPT=kept is not None, ABOVE=above is not None,
            POSITIVE=values is not None, N=8192, num_warps=16,
        )  # fmt: skip
        return out

    def check(self, limits: list[float]) -> None:
        """Raise NonFiniteError, which names the place, unless all pre-activations are finite, by
        :meth:`limits`.
        """
        x, w, b, *_ = limits
        if not x * w + b <= LARGEST_PRE_ACTIVATION:
            x_norms = RowNorms(norm=self.x_rows.norm, error=self.x_rows.norm)
            W_norms = RowNorms(norm=self.W_rows.norm, error=self.W_rows.norm)
            check_finite_factors(x_norms, W_norms, self.b)


def factors_of(x: Tensor, W: Tensor, b: Tensor, rounded_W: ScreenRows | None) -> Factors:
    """Check shapes and round; ``rounded_W`` is :func:`.rounding.round_latents` of ``W`` if it is there
    already.
    """
    x_rows = kept_batch(x)
    x = whole_rows("x", x)
    W = whole_rows("W", W, x.shape[1])
    if b.shape != (len(W),) or b.dtype != torch.float32:
        raise ValueError(
            f"b must be float32 [{len(W)}], one for each row of W, got {b.dtype} {tuple(b.shape)}"
        )
    b = b.detach().contiguous()
    return Factors(x=x, W=W, b=b, x_rows=x_rows, W_rows=round_latents(W) if rounded_W is None else rounded_W)


def screening_pays(device: torch.device, width: int, num_columns: int, wanted_of_row: float) -> bool:
    """Whether a screen rules pairs out: few enough are wanted, and the device keeps the screen's bounds."""
    return wanted_of_row * SMALLEST_CHUNK <= num_columns and keeps_bounds(device, width)


def matrix_rows(num_columns: int, device: torch.device) -> int:
    """How many rows of exact pre-activations fit in a block, where a selection looks at all of them."""
    return max(1, block_bytes(device) // (4 * max(num_columns, 1)))
