"""Where the selection rules get their scores: from an encoder (screened, pairs recomputed), or from given
blocks.

Legend: B rows, b rows of a block, D model width, F latents, P pairs.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.compile import compiled
from ..kernels.dispatch import use_compiled
from ..kernels.encode import Blocks, EncoderBlocks
from ..kernels.scratch import borrowed
from ..kernels.sddmm import dot_products
from ..kernels.threads import run_parts
from .bounds import ErrorBounds, no_error, product_bounds, row_norms
from .errors import check_finite_factors, check_not_nan
from .pieces import Piece
from .scan import Latents, describe_latents
from .screening import bfloat16_pays

SMALLEST_PART = 32  # rows of a product; fewer make a slow one


@dataclass(frozen=True, eq=False)
class ScoredBlock:
    """Scores of consecutive rows, and what bounds their error (see :mod:`.scan`); numpy arrays.

    Attributes:
        first_row: of the batch.
        scores: float32 or bfloat16 bits [b, F].
        slack: float32 [b].
        relative: float32.
        latents: their biases and norms.
        exact: ``exact(start, stop, candidate, value)`` writes the pre-activations of
            ``candidate[start[r]:stop[r]]``, latents of row r of the block, to the same places of ``value``.
    """

    first_row: int
    scores: Any
    slack: Any
    relative: Any
    latents: Latents
    exact: Callable[[Any, Any, Any, Any], None]

    @property
    def num_rows(self) -> int:
        return int(self.scores.shape[0])


CompiledWork = Callable[[ScoredBlock], Piece]
PlainWork = Callable[[int, Tensor], Piece]


def each_block(blocks: Blocks, compiled_work: CompiledWork, plain_work: PlainWork) -> list[Piece]:
    """What the work makes of every block, in no particular order.

    ``compiled_work`` is called from several threads, where compiled loops can run; otherwise ``plain_work``
    with the block's first row and pre-activations.
    """
    if isinstance(blocks, EncoderBlocks) and use_compiled(blocks.x_centered, blocks.W_enc, blocks.b_enc):
        return _screened(blocks, compiled_work)
    pieces: list[Piece] = []
    for first_row, pre in blocks():
        if use_compiled(pre):
            pieces += _as_given(first_row, pre, compiled_work)
        else:
            pieces.append(plain_work(first_row, pre))
    return pieces


def _as_given(first_row: int, pre: Tensor, work: CompiledWork) -> list[Piece]:
    check_not_nan(first_row, pre)
    num_rows, num_latents = pre.shape
    bounds = no_error(num_rows, num_latents)
    latents = describe_latents(np.zeros(num_latents, np.float32), bounds.norm.numpy())
    scores, pieces = pre.detach().numpy(), []

    def part(start: int, stop: int) -> None:
        given = scores[start:stop]

        def exact(first: Any, last: Any, candidate: Any, value: Any) -> None:
            _gather(first, last, candidate, given, value)

        slack = bounds.slack.numpy()[start:stop]
        block = ScoredBlock(first_row + start, given, slack, np.float32(0), latents, exact)
        pieces.append(work(block))

    run_parts(part, num_rows, part_rows(num_rows, num_rows))
    return pieces


def _screened(blocks: EncoderBlocks, work: CompiledWork) -> list[Piece]:
    """Scores from a matrix product, in bfloat16 where that pays; pre-activations as :func:`..kernels.sddmm`
    has them.

    The product and the work on a block run on one thread, while the block is in its cache.
    """
    x, W, b = blocks.x_centered, blocks.W_enc, blocks.b_enc
    (num_rows, width), num_latents = x.shape, W.shape[0]
    in_bfloat16 = bfloat16_pays(num_latents, width)
    dtype = torch.bfloat16 if in_bfloat16 else torch.float32
    pieces: list[Piece] = []
    with (
        borrowed(num_latents, width, dtype=dtype) if in_bfloat16 else nullcontext(W) as W_product,
        borrowed(num_rows, width, dtype=dtype) if in_bfloat16 else nullcontext(x) as x_product,
    ):
        if in_bfloat16:
            W_product.copy_(W)
            x_product.copy_(x)
        bounds = _bounds(x, W, x_product, W_product)
        check_finite_factors(bounds, b)
        latents = describe_latents(b.numpy(), bounds.norm.numpy())

        def part(start: int, stop: int) -> None:
            rows = x[start:stop].numpy()

            def exact(first: Any, last: Any, candidate: Any, value: Any) -> None:
                dot_products(first, last, candidate, rows, W.numpy(), value, 0, stop - start)
                _add_bias(first, last, candidate, latents.bias, value)

            with borrowed(stop - start, num_latents, dtype=dtype) as buffer:
                torch.mm(x_product[start:stop], W_product.T, out=buffer)
                scores = buffer.view(torch.uint16).numpy() if in_bfloat16 else buffer.numpy()
                slack = bounds.slack.numpy()[start:stop]
                block = ScoredBlock(start, scores, slack, np.float32(bounds.relative), latents, exact)
                pieces.append(work(block))

        run_parts(part, num_rows, part_rows(num_rows, blocks.block_rows))
    return pieces


def part_rows(num_rows: int, most: int) -> int:
    """Rows of a part: at most ``most``, and no more than gives every thread one."""
    return min(most, max(SMALLEST_PART, -(-num_rows // torch.get_num_threads())))


def _bounds(x: Tensor, W: Tensor, x_product: Tensor, W_product: Tensor) -> ErrorBounds:
    if W_product.dtype == torch.bfloat16:
        return product_bounds(row_norms(x, x_product), row_norms(W, W_product), W.shape[1], "bfloat16")
    if (
        torch.get_float32_matmul_precision() != "highest"
    ):  # then torch may round the factors to bfloat16 itself
        x_norms, w_norms = row_norms(x, x.bfloat16()), row_norms(W, W.bfloat16())
        return product_bounds(x_norms, w_norms, W.shape[1], "float32")
    return product_bounds(row_norms(x, None), row_norms(W, None), W.shape[1], "float32")


@compiled
def _add_bias(start: Any, stop: Any, candidate: Any, bias: Any, value: Any) -> None:
    for row in range(start.shape[0]):
        for i in range(start[row], stop[row]):
            value[i] += bias[candidate[i]]


@compiled
def _gather(start: Any, stop: Any, candidate: Any, pre: Any, value: Any) -> None:
    for row in range(start.shape[0]):
        for i in range(start[row], stop[row]):
            value[i] = pre[row, candidate[i]]
