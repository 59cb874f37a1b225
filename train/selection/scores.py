"""Where the selection rules get their scores: from an encoder (screened, pairs recomputed), or from given
blocks.

Legend: B rows, b rows of a block, D model width, F latents, P pairs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.compile import compiled
from ..kernels.dispatch import use_compiled
from ..kernels.encode import Blocks, EncoderBlocks
from ..kernels.scratch import borrowed
from ..kernels.sddmm import dot_products_in_tiles
from ..kernels.threads import run_parts
from .bounds import ErrorBounds, product_bounds, row_norms
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
    exact: "Exact"

    @property
    def num_rows(self) -> int:
        return int(self.scores.shape[0])


Exact = Callable[[Any, Any, Any, Any], None]
CompiledWork = Callable[[ScoredBlock], Piece]
PlainWork = Callable[[int, Tensor], Piece]


def each_block(blocks: Blocks, compiled_work: CompiledWork, plain_work: PlainWork) -> list[Piece]:
    """What the work makes of every block, in no particular order.

    ``compiled_work`` is called from several threads, where compiled loops can run; otherwise ``plain_work``
    with the block's first row and pre-activations.
    """
    if (screen := screen_of(blocks)) is not None:
        return _screened(screen, compiled_work)
    pieces: list[Piece] = []
    for first_row, pre in blocks():
        if use_compiled(pre):
            pieces += _as_given(first_row, pre, compiled_work)
        else:
            pieces.append(plain_work(first_row, pre))
    return pieces


def _screened(blocks: EncoderBlocks, work: CompiledWork) -> list[Piece]:
    """The product and the work on a block run on one thread, while the block is in its cache."""
    pieces: list[Piece] = []
    num_rows = blocks.x_centered.shape[0]
    with opened(blocks) as screen:

        def part(start: int, stop: int) -> None:
            with screen.scored(start, stop) as block:
                pieces.append(work(block))

        run_parts(part, num_rows, part_rows(num_rows, blocks.block_rows))
    return pieces


def _as_given(first_row: int, pre: Tensor, work: CompiledWork) -> list[Piece]:
    pieces: list[Piece] = []
    whole = given_block(first_row, pre)

    def part(start: int, stop: int) -> None:
        pieces.append(work(given_block(first_row + start, pre[start:stop], whole.latents)))

    run_parts(part, whole.num_rows, part_rows(whole.num_rows, whole.num_rows))
    return pieces


def part_rows(num_rows: int, most: int) -> int:
    """Rows of a part: at most ``most``, and no more than leaves every thread one."""
    return min(most, max(SMALLEST_PART, -(-num_rows // torch.get_num_threads())))


def given_block(first_row: int, pre: Tensor, latents: Latents | None = None) -> ScoredBlock:
    """Pre-activations [b, F] as scores without error. They are searched for NaN, unless ``latents`` is
    given.
    """
    if latents is None:
        check_not_nan(first_row, pre)
        zeros = np.zeros(pre.shape[1], np.float32)
        latents = describe_latents(zeros, zeros)
    given, slack = pre.detach().numpy(), np.zeros(pre.shape[0], np.float32)

    def exact(start: Any, stop: Any, candidate: Any, value: Any) -> None:
        _gather(start, stop, candidate, given, value)

    return ScoredBlock(first_row, given, slack, np.float32(0), latents, exact)


def screen_of(blocks: Blocks) -> EncoderBlocks | None:
    """``blocks`` themselves when their factors can be read by compiled loops."""
    if isinstance(blocks, EncoderBlocks) and use_compiled(blocks.x_centered, blocks.W_enc, blocks.b_enc):
        return blocks
    return None


@dataclass(frozen=True, eq=False)
class Screen:
    """An encoder whose products are scores: in bfloat16 where that pays, else in float32.

    Pre-activations are what :func:`..kernels.sddmm` gives plus the bias, whichever product it is.
    """

    x: Tensor
    W: Tensor
    x_product: Tensor
    W_product: Tensor
    bounds: ErrorBounds
    latents: Latents

    @contextmanager
    def scored(self, start: int, stop: int) -> Iterator[ScoredBlock]:
        """Rows ``start`` to ``stop - 1``. The scores are gone after the ``with`` block."""
        dtype = self.W_product.dtype
        with borrowed(stop - start, self.W.shape[0], dtype=dtype) as buffer:
            self._multiply(start, stop, buffer)
            scores = (buffer.view(torch.uint16) if dtype == torch.bfloat16 else buffer).numpy()
            slack = self.bounds.slack[start:stop].numpy()
            relative = np.float32(self.bounds.relative)
            yield ScoredBlock(start, scores, slack, relative, self.latents, self.exact(start, stop))

    def _multiply(self, start: int, stop: int, out: Tensor) -> None:
        x = self.x_product[start:stop]

        def part(first: int, last: int) -> None:
            torch.mm(x[first:last], self.W_product.T, out=out[first:last])

        run_parts(part, stop - start, part_rows(stop - start, stop - start))

    def exact(self, start: int, stop: int) -> Exact:
        """See :class:`ScoredBlock`, for rows ``start`` to ``stop - 1``."""
        rows, W, bias = self.x[start:stop].numpy(), self.W.numpy(), self.latents.bias

        def exact(first: Any, last: Any, candidate: Any, value: Any) -> None:
            dot_products_in_tiles(first, last, candidate, rows, W, value)
            _add_bias(first, last, candidate, bias, value)

        return exact


@contextmanager
def opened(blocks: EncoderBlocks) -> Iterator[Screen]:
    """The screen of an encoder; its rounded copies of the factors are borrowed memory."""
    x, W, b = blocks.x_centered, blocks.W_enc, blocks.b_enc
    if not bfloat16_pays(*W.shape):
        bounds = _float32_bounds(x, W, b)
        yield Screen(x, W, x, W, bounds, describe_latents(b.numpy(), bounds.norm.numpy()))
        return
    with borrowed(*x.shape, dtype=torch.bfloat16) as x_, borrowed(*W.shape, dtype=torch.bfloat16) as W_:
        x_.copy_(x)
        W_.copy_(W)
        x_norms, W_norms = row_norms(x, x_), row_norms(W, W_)
        check_finite_factors(x_norms, W_norms, b)
        bounds = product_bounds(x_norms, W_norms, W.shape[1], "bfloat16")
        yield Screen(x, W, x_, W_, bounds, describe_latents(b.numpy(), bounds.norm.numpy()))


def _float32_bounds(x: Tensor, W: Tensor, b: Tensor) -> ErrorBounds:
    may_round = (
        torch.get_float32_matmul_precision() != "highest"
    )  # torch may then use bfloat16 factors itself
    x_norms = row_norms(x, x.bfloat16() if may_round else None)
    W_norms = row_norms(W, W.bfloat16() if may_round else None)
    check_finite_factors(x_norms, W_norms, b)
    return product_bounds(x_norms, W_norms, W.shape[1], "float32")


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
