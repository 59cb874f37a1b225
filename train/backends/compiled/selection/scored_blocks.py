"""The scores of a block of rows, for selections. A screening product computes them from an encoder, and the
pre-activations of candidates are then computed exactly; or they are given numbers, without error.

Legend: B rows, b rows of a block, D model width, F latents, P pairs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ....selection.errors import check_not_nan
from ...block_pairs import BlockPairs
from ...bounds import ErrorBounds, check_finite_factors
from ...scratch import borrowed
from ...sources import Encoder, Source
from ...threads import num_threads, run_parts
from ..compile import compiled
from ..pair_order import tile_cuts
from ..pair_products import dot_products_in_tiles
from .cheapest_product import cheapest_product
from .refine import Narrower
from .scan import Latents, describe_latents, top_of_chunks
from .screening_products import ProductFactors, as_array, factors

SMALLEST_PART = 32  # rows of a product; fewer make a slow one


@dataclass(frozen=True, eq=False)
class ScoredBlock:
    """The scores of consecutive rows and the bounds of their errors (see :mod:`.scan`), as numpy arrays.

    Attributes:
        first_row: the number of the first row in the batch.
        scores: float32 or bfloat16 bits [b, F].
        tops: int32 [b, chunks], the key of the largest v of each chunk.
        slack: float32 [b].
        relative: float32.
        latents: the biases and norms.
        exact: ``exact(first_row, start, stop, candidate, value)`` writes the pre-activations of the latents
            ``candidate[start[r]:stop[r]]`` of the batch's row ``first_row + r`` to the same places of
            ``value``.
        narrower: the second screening of candidates, if the bounds are so wide that it pays.
    """

    first_row: int
    scores: Any
    tops: Any
    slack: Any
    relative: Any
    latents: Latents
    exact: "Exact"
    narrower: Narrower | None = None

    @property
    def num_rows(self) -> int:
        return int(self.scores.shape[0])

    def part(self, first: int, last: int) -> "ScoredBlock":
        """Rows ``first`` to ``last - 1`` of the block."""
        rows = slice(first, last)
        return replace(
            self,
            first_row=self.first_row + first,
            scores=self.scores[rows],
            tops=self.tops[rows],
            slack=self.slack[rows],
        )


Exact = Callable[[int, Any, Any, Any, Any], None]


def part_rows(num_rows: int, most: int) -> int:
    """The rows of a part: at most ``most``, and so few that every thread gets a part."""
    return min(most, max(SMALLEST_PART, -(-num_rows // num_threads())))


@dataclass(frozen=True, eq=False)
class EncoderScreen:
    """An encoder with its screening product.

    Whichever product that is, exact pre-activations are :func:`..pair_products.sddmm` plus the bias.
    """

    x: Tensor
    W: Tensor
    factors: ProductFactors
    bounds: ErrorBounds
    latents: Latents
    narrower: Narrower | None

    @contextmanager
    def scored(self, start: int, stop: int, most: int | None = None) -> Iterator[ScoredBlock]:
        """Score rows ``start`` to ``stop - 1``, at most ``most`` of them with a product.

        The scores are invalid after the ``with`` block.
        """
        tops = np.empty((stop - start, len(self.latents.norm_of_chunk)), np.int32)
        with borrowed(stop - start, self.W.shape[0], dtype=self.factors.dtype) as buffer:

            def part(first: int, last: int) -> None:
                rows = slice(first, last)
                self.factors.score(start + first, start + last, self.latents.bias, buffer[rows], tops[rows])

            run_parts(part, stop - start, part_rows(stop - start, most or stop - start))
            yield ScoredBlock(
                first_row=start,
                scores=as_array(buffer),
                tops=tops,
                slack=self.bounds.slack[start:stop].numpy(),
                relative=np.float32(self.bounds.relative),
                latents=self.latents,
                exact=self.exact,
                narrower=self.narrower,
            )

    def exact(self, first_row: int, start: Any, stop: Any, candidate: Any, value: Any) -> None:
        """See :class:`ScoredBlock`."""
        rows = self.x[first_row : first_row + len(start)].numpy()
        W = self.W.numpy()
        dot_products_in_tiles(tile_cuts(start, stop, candidate, W.strides[0]), candidate, rows, W, value)
        _add_bias(start, stop, candidate, self.latents.bias, value)


@contextmanager
def opened(encoder: Encoder, per_row: float | None = None) -> Iterator[EncoderScreen]:
    """Open the screen of an encoder; it borrows memory for rounded copies of the factors.

    ``per_row`` is about how many pairs of each row a selection needs; None excludes wide bounds.
    """
    x, W, b = encoder.x_centered, encoder.W_enc, encoder.b_enc
    with factors(cheapest_product(x, W, b, per_row), x, W) as ready:
        check_finite_factors(ready.x_norms, ready.W_norms, b)
        bounds = ready.bounds()
        latents = describe_latents(b.numpy(), bounds.norm.numpy())
        yield EncoderScreen(x, W, ready, bounds, latents, _narrower(x, ready, latents))


def _narrower(x: Tensor, ready: ProductFactors, latents: Latents) -> Narrower | None:
    if ready.W_codes is None:
        return None
    bounds = ready.narrow_bounds()
    return Narrower(
        x=x.numpy(),
        code=ready.W_codes.code.numpy(),
        scale=ready.W_codes.scale.numpy(),
        slack=bounds.slack.numpy(),
        relative=np.float32(bounds.relative),
        latents=latents,  # the norms are those of the wide bounds
    )


@compiled
def _add_bias(start: Any, stop: Any, candidate: Any, bias: Any, value: Any) -> None:
    for row in range(start.shape[0]):
        for i in range(start[row], stop[row]):
            value[i] += bias[candidate[i]]


Work = Callable[[ScoredBlock], BlockPairs]


def each_block(source: Source, work: Work, *, per_row: float) -> list[BlockPairs]:
    """Call ``work`` for every block, from several threads; return the results in no particular order.

    ``per_row`` is about how many pairs ``work`` selects in each row.
    """
    if isinstance(source, Encoder):
        return _each_screened_block(source, work, per_row)
    return [
        one
        for first_row, pre in source.blocks()
        for one in _each_given_part(first_row, pre.contiguous(), work)
    ]


def _each_screened_block(encoder: Encoder, work: Work, per_row: float) -> list[BlockPairs]:
    """One thread runs the product of a block and then ``work``, while the block is in its cache."""
    found: list[BlockPairs] = []
    num_rows = encoder.num_rows
    with opened(encoder, per_row) as screen:

        def part(start: int, stop: int) -> None:
            with screen.scored(start, stop) as block:
                found.append(work(block))

        most = encoder.rows_per_block * encoder.W_enc.element_size() // screen.factors.dtype.itemsize
        run_parts(part, num_rows, part_rows(num_rows, most))
    return found


def _each_given_part(first_row: int, pre: Tensor, work: Work) -> list[BlockPairs]:
    found: list[BlockPairs] = []
    whole = given_block(first_row, pre)

    def part(start: int, stop: int) -> None:
        found.append(work(given_block(first_row + start, pre[start:stop], whole.latents)))

    run_parts(part, whole.num_rows, part_rows(whole.num_rows, whole.num_rows))
    return found


def given_block(first_row: int, pre: Tensor, latents: Latents | None = None) -> ScoredBlock:
    """Make a block of pre-activations [b, F], which are scores without error.

    Without ``latents`` they are checked for NaN.
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
