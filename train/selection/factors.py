"""The factors of an encoder's product, in each of the kinds of numbers that a screen can multiply.

Legend: B rows, D model width, F latents.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels.scratch import borrowed
from . import int8
from .bounds import ErrorBounds, Product, RowNorms, product_bounds, row_norms
from .scan import top_of_chunks

Score = Callable[[int, int, Any, Tensor, Any], object]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """x [B, D] and W [F, D], ready to be multiplied.

    Attributes:
        dtype: of the scores.
        score: ``score(start, stop, bias, out, tops)`` writes those of some rows into ``out`` [b, F], and what
            :func:`.scan.top_of_chunks` says of them and ``bias`` into ``tops``.
        x_norms, W_norms: of the rows of both, and of what their numbers leave out.
        W_codes: the encoder in eight bits, where that is the product.
    """

    product: Product
    dtype: torch.dtype
    score: Score
    x_norms: RowNorms
    W_norms: RowNorms
    width: int
    W_codes: int8.Codes | None = None

    def bounds(self) -> ErrorBounds:
        """On the errors of the scores."""
        return product_bounds(self.x_norms, self.W_norms, self.width, self.product)

    def narrow_bounds(self) -> ErrorBounds:
        """On those of float32 rows times ``W_codes``."""
        x_norms = RowNorms(norm=self.x_norms.norm, error=torch.zeros_like(self.x_norms.error))
        return product_bounds(x_norms, self.W_norms, self.width, "int8 encoder")


@contextmanager
def factors(product: Product, x: Tensor, W: Tensor) -> Iterator[Factors]:
    """Of float32 ``x`` and ``W``; rounded copies are borrowed memory."""
    width = x.shape[1]
    if product == "float32":
        # Below the highest precision torch may use bfloat16 factors itself.
        rounds = torch.get_float32_matmul_precision() != "highest"
        norms = [row_norms(rows, rows.bfloat16() if rounds else None) for rows in (x, W)]
        yield Factors(
            product=product, dtype=x.dtype, score=partial(_score, x, W),
            x_norms=norms[0], W_norms=norms[1], width=width,
        )  # fmt: skip
        return
    dtype = torch.int8 if product == "int8" else torch.bfloat16
    with borrowed(*x.shape, dtype=dtype) as x_, borrowed(*W.shape, dtype=dtype) as W_:
        if product == "int8":
            x_codes, W_codes = int8.to_codes(x, x_), int8.to_codes(W, W_)
            yield Factors(
                product=product, dtype=torch.bfloat16, score=partial(int8.scores, x_codes, W_codes),
                x_norms=x_codes.norms, W_norms=W_codes.norms, width=width, W_codes=W_codes,
            )  # fmt: skip
        else:
            x_.copy_(x)
            W_.copy_(W)
            yield Factors(
                product=product, dtype=torch.bfloat16, score=partial(_score, x_, W_),
                x_norms=row_norms(x, x_), W_norms=row_norms(W, W_), width=width,
            )  # fmt: skip


def _score(x: Tensor, W: Tensor, start: int, stop: int, bias: Any, out: Tensor, tops: Any) -> None:
    torch.mm(x[start:stop], W.T, out=out)
    top_of_chunks(as_array(out), bias, tops)


def as_array(scores: Tensor) -> Any:
    """Scores as compiled loops read them: float32, or the bits of bfloat16 in uint16."""
    return (scores.view(torch.uint16) if scores.dtype == torch.bfloat16 else scores).numpy()
