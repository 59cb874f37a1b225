"""An encoder as the selection rules see it: scores of all pairs from a cheap product, exact values of few.

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
from .bounds import ErrorBounds
from .errors import check_finite_factors
from .factors import Factors, factors
from .scan import Latents, describe_latents
from .screening import cheapest_product

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
        wide: the bounds are so wide that it pays to look at some exact pre-activations first.
        exact: ``exact(start, stop, candidate, value)`` writes the pre-activations of
            ``candidate[start[r]:stop[r]]``, latents of row r of the block, to the same places of ``value``.
    """

    first_row: int
    scores: Any
    slack: Any
    relative: Any
    latents: Latents
    wide: bool
    exact: "Exact"

    @property
    def num_rows(self) -> int:
        return int(self.scores.shape[0])


Exact = Callable[[Any, Any, Any, Any], None]


def part_rows(num_rows: int, most: int) -> int:
    """Rows of a part: at most ``most``, and no more than leaves every thread one."""
    return min(most, max(SMALLEST_PART, -(-num_rows // torch.get_num_threads())))


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

    @contextmanager
    def scored(self, start: int, stop: int) -> Iterator[ScoredBlock]:
        """Rows ``start`` to ``stop - 1``. The scores are gone after the ``with`` block."""
        dtype = self.factors.dtype
        with borrowed(stop - start, self.W.shape[0], dtype=dtype) as buffer:

            def part(first: int, last: int) -> None:
                self.factors.multiply(start + first, start + last, buffer[first:last])

            run_parts(part, stop - start, part_rows(stop - start, stop - start))
            scores = (buffer.view(torch.uint16) if dtype == torch.bfloat16 else buffer).numpy()
            slack = self.bounds.slack[start:stop].numpy()
            relative = np.float32(self.bounds.relative)
            wide = self.factors.product == "int8"
            yield ScoredBlock(start, scores, slack, relative, self.latents, wide, self.exact(start, stop))

    def exact(self, start: int, stop: int) -> Exact:
        """See :class:`ScoredBlock`, for rows ``start`` to ``stop - 1``."""
        rows, W, bias = self.x[start:stop].numpy(), self.W.numpy(), self.latents.bias

        def exact(first: Any, last: Any, candidate: Any, value: Any) -> None:
            dot_products_in_tiles(first, last, candidate, rows, W, value)
            _add_bias(first, last, candidate, bias, value)

        return exact


@contextmanager
def opened(blocks: EncoderBlocks, per_row: float | None = None) -> Iterator[Screen]:
    """The screen of an encoder; rounded copies of its factors are borrowed memory.

    ``per_row``: about how many pairs of each row are looked for; None rules wide bounds out.
    """
    x, W, b = blocks.x_centered, blocks.W_enc, blocks.b_enc
    with factors(cheapest_product(x, W, b, per_row), x, W) as ready:
        check_finite_factors(ready.x_norms, ready.W_norms, b)
        bounds = ready.bounds()
        yield Screen(x, W, ready, bounds, describe_latents(b.numpy(), bounds.norm.numpy()))


@compiled
def _add_bias(start: Any, stop: Any, candidate: Any, bias: Any, value: Any) -> None:
    for row in range(start.shape[0]):
        for i in range(start[row], stop[row]):
            value[i] += bias[candidate[i]]
