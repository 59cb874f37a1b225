"""The factors of an encoder's product, in each of the kinds of numbers that a screen can multiply.

Legend: B rows, D model width, F latents.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..kernels.scratch import borrowed
from . import int8
from .bounds import ErrorBounds, Product, RowNorms, product_bounds, row_norms

Multiply = Callable[[int, int, Tensor], object]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """x [B, D] and W [F, D], ready to be multiplied.

    Attributes:
        dtype: of the scores. multiply: ``multiply(start, stop, out)`` writes those of some rows, [b, F].
        x_norms, W_norms: of the rows of both, and of what their numbers leave out.
    """

    product: Product
    dtype: torch.dtype
    multiply: Multiply
    x_norms: RowNorms
    W_norms: RowNorms
    width: int

    def bounds(self) -> ErrorBounds:
        """On the errors of the scores."""
        return product_bounds(self.x_norms, self.W_norms, self.width, self.product)


@contextmanager
def factors(product: Product, x: Tensor, W: Tensor) -> Iterator[Factors]:
    """Of float32 ``x`` and ``W``; rounded copies are borrowed memory."""
    width = x.shape[1]
    if product == "float32":
        # Below the highest precision torch may use bfloat16 factors itself.
        rounds = torch.get_float32_matmul_precision() != "highest"
        norms = [row_norms(rows, rows.bfloat16() if rounds else None) for rows in (x, W)]
        yield Factors(
            product=product, dtype=x.dtype, multiply=partial(_multiply, x, W),
            x_norms=norms[0], W_norms=norms[1], width=width,
        )  # fmt: skip
        return
    dtype = torch.int8 if product == "int8" else torch.bfloat16
    with borrowed(*x.shape, dtype=dtype) as x_, borrowed(*W.shape, dtype=dtype) as W_:
        if product == "int8":
            x_codes, W_codes = int8.to_codes(x, x_), int8.to_codes(W, W_)
            multiply: Multiply = partial(int8.scores, x_codes, W_codes)
            x_norms, W_norms = x_codes.norms, W_codes.norms
        else:
            x_.copy_(x)
            W_.copy_(W)
            multiply, x_norms, W_norms = partial(_multiply, x_, W_), row_norms(x, x_), row_norms(W, W_)
        yield Factors(
            product=product, dtype=torch.bfloat16, multiply=multiply,
            x_norms=x_norms, W_norms=W_norms, width=width,
        )  # fmt: skip


def _multiply(x: Tensor, W: Tensor, start: int, stop: int, out: Tensor) -> None:
    torch.mm(x[start:stop], W.T, out=out)
