"""An encoder as the selection rules see it: scores of all pairs from a cheap product, exact values of few.

Legend: B rows, b rows of a block, D model width, F latents, P pairs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..kernels.compile import compiled
from ..kernels.dispatch import use_compiled
from ..kernels.encode import Blocks, EncoderBlocks
from ..kernels.scratch import borrowed
from ..kernels.sddmm import dot_products_in_tiles
from ..kernels.threads import num_threads, run_parts
from ..kernels.tiles import tile_cuts
from .bounds import ErrorBounds
from .errors import check_finite_factors
from .factors import Factors, as_array, factors
from .narrow import Narrower
from .scan import Latents, describe_latents
from .screening import cheapest_product

SMALLEST_PART = 32  # rows of a product; fewer make a slow one


@dataclass(frozen=True, eq=False)
class ScoredBlock:
    """Scores of consecutive rows, and what bounds their error (see :mod:`.scan`); numpy arrays.

    Attributes:
        first_row: of the batch.
        scores: float32 or bfloat16 bits [b, F].
        tops: int32 [b, chunks], the key of the largest v of each chunk.
        slack: float32 [b].
        relative: float32.
        latents: their biases and norms.
        exact: ``exact(first_row, start, stop, candidate, value)`` writes the pre-activations of
            ``candidate[start[r]:stop[r]]``, latents of row ``first_row + r`` of the batch, to the same places
            of ``value``.
        narrower: where bounds are so wide that a second look at candidates pays.
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
    """Rows of a part: at most ``most``, and no more than leaves every thread one."""
    return min(most, max(SMALLEST_PART, -(-num_rows // num_threads())))


def screen_of(blocks: Blocks) -> EncoderBlocks | None:
    """``blocks`` themselves when their factors can be read by compiled loops."""
    if isinstance(blocks, EncoderBlocks) and use_compiled(blocks.x_centered, blocks.W_enc, blocks.b_enc):
        return blocks
    return None


@dataclass(frozen=True, eq=False)
class Screen:
    """An encoder whose product gives scores, in whichever numbers are the cheapest.

    Pre-activations are what :func:`..kernels.sddmm` gives plus the bias, whichever product it is.
    """

    x: Tensor
    W: Tensor
    factors: Factors
    bounds: ErrorBounds
    latents: Latents
    narrower: Narrower | None

    @contextmanager
    def scored(self, start: int, stop: int) -> Iterator[ScoredBlock]:
        """Rows ``start`` to ``stop - 1``. The scores are gone after the ``with`` block."""
        tops = np.empty((stop - start, len(self.latents.norm_of_chunk)), np.int32)
        with borrowed(stop - start, self.W.shape[0], dtype=self.factors.dtype) as buffer:

            def part(first: int, last: int) -> None:
                rows = slice(first, last)
                self.factors.score(start + first, start + last, self.latents.bias, buffer[rows], tops[rows])

            run_parts(part, stop - start, part_rows(stop - start, stop - start))
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
def opened(blocks: EncoderBlocks, per_row: float | None = None) -> Iterator[Screen]:
    """The screen of an encoder; rounded copies of its factors are borrowed memory.

    ``per_row``: about how many pairs of each row are looked for; None rules wide bounds out.
    """
    x, W, b = blocks.x_centered, blocks.W_enc, blocks.b_enc
    with factors(cheapest_product(x, W, b, per_row), x, W) as ready:
        check_finite_factors(ready.x_norms, ready.W_norms, b)
        bounds = ready.bounds()
        latents = describe_latents(b.numpy(), bounds.norm.numpy())
        yield Screen(x, W, ready, bounds, latents, _narrower(x, ready, latents))


def _narrower(x: Tensor, ready: Factors, latents: Latents) -> Narrower | None:
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
