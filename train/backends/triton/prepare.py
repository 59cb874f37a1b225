"""What every selection starts with: the rounded rows, whether to screen at all, and the late check of
numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds import LARGEST_PRE_ACTIVATION, RowNorms, check_finite_factors
from ..sources import block_bytes
from .launch import whole_rows
from .rounding import ScreenRows, round_batch, round_latents
from .screen import SMALLEST_CHUNK, keeps_bounds



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

    def limits(self) -> Tensor:
        """The largest norms of rows and latents, and the largest bias: float64 [3], on the device; NaN if one
        is.
        """
        return torch.stack([self.x_rows.norm.amax(), self.W_rows.norm.amax(), self.b.abs().amax()]).double()

    def check(self, limits: list[float]) -> None:
        """Raise NonFiniteError, which names the place, unless all pre-activations are finite, by
        :meth:`limits`.
        """
        x, w, b = limits
        if not x * w + b <= LARGEST_PRE_ACTIVATION:
            x_norms = RowNorms(norm=self.x_rows.norm, error=self.x_rows.norm)
            W_norms = RowNorms(norm=self.W_rows.norm, error=self.W_rows.norm)
            check_finite_factors(x_norms, W_norms, self.b)


def factors_of(x: Tensor, W: Tensor, b: Tensor, rounded_W: ScreenRows | None) -> Factors:
    """Check shapes and round; ``rounded_W`` is :func:`.rounding.round_latents` of ``W`` if it is there
    already.
    """
    x = whole_rows("x", x)
    W = whole_rows("W", W, x.shape[1])
    if b.shape != (len(W),) or b.dtype != torch.float32:
        raise ValueError(
            f"b must be float32 [{len(W)}], one for each row of W, got {b.dtype} {tuple(b.shape)}"
        )
    b = b.detach().contiguous()
    return Factors(
        x=x, W=W, b=b, x_rows=round_batch(x), W_rows=round_latents(W) if rounded_W is None else rounded_W
    )


def screening_pays(device: torch.device, width: int, num_columns: int, wanted_of_row: float) -> bool:
    """Whether a screen rules pairs out: few enough are wanted, and the device keeps the screen's bounds."""
    return wanted_of_row * SMALLEST_CHUNK <= num_columns and keeps_bounds(device, width)


def matrix_rows(num_columns: int, device: torch.device) -> int:
    """How many rows of exact pre-activations fit in a block, where a selection looks at all of them."""
    return max(1, block_bytes(device) // (4 * max(num_columns, 1)))
