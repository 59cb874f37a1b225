"""Where the selection rules get their scores: from an encoder (screened, pairs recomputed), or from given
blocks.

Legend: B rows, b rows of a block, D model width, F latents, P pairs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ..kernels.compile import compiled
from ..kernels.dispatch import use_compiled
from ..kernels.encode import Blocks, EncoderBlocks
from ..kernels.threads import run_parts
from .errors import check_not_nan
from .pieces import Piece
from .scan import Latents, describe_latents, top_of_chunks
from .screen import ScoredBlock, opened, part_rows, screen_of

CompiledWork = Callable[[ScoredBlock], Piece]
PlainWork = Callable[[int, Tensor], Piece]


def each_block(
    blocks: Blocks, compiled_work: CompiledWork, plain_work: PlainWork, *, per_row: float
) -> list[Piece]:
    """What the work makes of every block, in no particular order; about ``per_row`` pairs of each row.

    ``compiled_work`` is called from several threads, where compiled loops can run; otherwise ``plain_work``
    with the block's first row and pre-activations.
    """
    if (screen := screen_of(blocks)) is not None:
        return _screened(screen, compiled_work, per_row)
    pieces: list[Piece] = []
    for first_row, pre in blocks():
        if use_compiled(pre):
            pieces += _as_given(first_row, pre, compiled_work)
        else:
            pieces.append(plain_work(first_row, pre))
    return pieces


def _screened(blocks: EncoderBlocks, work: CompiledWork, per_row: float) -> list[Piece]:
    """The product and the work on a block run on one thread, while the block is in its cache."""
    pieces: list[Piece] = []
    num_rows = blocks.x_centered.shape[0]
    with opened(blocks, per_row) as screen:

        def part(start: int, stop: int) -> None:
            with screen.scored(start, stop) as block:
                pieces.append(work(block))

        most = blocks.block_rows * blocks.W_enc.element_size() // screen.factors.dtype.itemsize
        run_parts(part, num_rows, part_rows(num_rows, most))
    return pieces


def _as_given(first_row: int, pre: Tensor, work: CompiledWork) -> list[Piece]:
    pieces: list[Piece] = []
    whole = given_block(first_row, pre)

    def part(start: int, stop: int) -> None:
        pieces.append(work(given_block(first_row + start, pre[start:stop], whole.latents)))

    run_parts(part, whole.num_rows, part_rows(whole.num_rows, whole.num_rows))
    return pieces


def given_block(first_row: int, pre: Tensor, latents: Latents | None = None) -> ScoredBlock:
    """Pre-activations [b, F] as scores without error. They are searched for NaN, unless ``latents`` is
    given.
    """
    if latents is None:
        check_not_nan(first_row, pre)
        zeros = np.zeros(pre.shape[1], np.float32)
        latents = describe_latents(zeros, zeros)
    given, slack = pre.detach().numpy(), np.zeros(pre.shape[0], np.float32)
    tops = np.empty((len(given), len(latents.norm_of_chunk)), np.int32)
    top_of_chunks(given, latents.bias, tops)

    def exact(row: int, start: Any, stop: Any, candidate: Any, value: Any) -> None:
        _gather(start, stop, candidate, given[row - first_row :], value)

    return ScoredBlock(first_row, given, tops, slack, np.float32(0), latents, exact)


@compiled
def _gather(start: Any, stop: Any, candidate: Any, pre: Any, value: Any) -> None:
    for row in range(start.shape[0]):
        for i in range(start[row], stop[row]):
            value[i] = pre[row, candidate[i]]
