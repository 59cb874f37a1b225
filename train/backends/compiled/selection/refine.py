"""Screen the candidates of an int8 product a second time: float32 rows times the encoder's int8 codes.

Only the encoder is rounded, so the bounds are half as wide, and a latent's codes take a quarter of the memory
of its float32 row. Most candidates drop out before their exact pre-activation is computed.

Legend: B rows of the batch, b rows looked at, D model width, F latents, P candidates.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bits import key, kth_key
from ..compile import compiled, compiled_sum
from ..prefetch import prefetch_some
from .scan import Latents, error_bound

AHEAD = 4  # how many candidates in advance codes are prefetched


@dataclass(frozen=True, eq=False, kw_only=True)
class Narrower:
    """The factors of the second screening and the bounds of its scores (:mod:`.scan`), as numpy arrays.

    Attributes:
        x: float32 [B, D]. code: int8 [F, D]. scale: float32 [F]. slack: float32 [B].
        relative: float32. latents: the biases and norms.
    """

    x: Any
    code: Any
    scale: Any
    slack: Any
    relative: Any
    latents: Latents

    def reaching(self, first_row: int, start: Any, stop: Any, candidate: Any, least: Any, bound: Any) -> Any:
        """Move the candidates that can reach ``least[row]`` and ``bound[latent]`` to the front of their row.

        Args:
            first_row: the first of the b rows.
            start, stop: int64 [b]; row r has the candidates ``start[r]:stop[r]``.
            candidate: int64 [P], latents, changed in place.
            least: int32 [b], keys. bound: int32 [F or more], keys.

        Returns:
            The new ``stop``, int64 [b].
        """
        rows = slice(first_row, first_row + len(start))
        kept = np.empty(len(start), np.int64)
        _keep_reaching(
            start, stop, candidate, self.x[rows], self.code, self.scale, self.latents, self.slack[rows],
            self.relative, least, bound, kept,
        )  # fmt: skip
        return kept

    def largest(self, first_row: int, start: Any, stop: Any, candidate: Any, k: int) -> Any:
        """As :meth:`reaching`, but for candidates that can be among the ``k`` largest of their row."""
        rows = slice(first_row, first_row + len(start))
        kept = np.empty(len(start), np.int64)
        _keep_largest(
            start, stop, candidate, self.x[rows], self.code, self.scale, self.latents, self.slack[rows],
            self.relative, k, kept,
        )  # fmt: skip
        return kept


@compiled
def _keep_reaching(
    start: Any, stop: Any, candidate: Any, x: Any, code: Any, scale: Any, latents: Any, slack: Any,
    relative: Any, least: Any, bound: Any, kept: Any,
) -> None:  # fmt: skip
    for row in range(start.shape[0]):
        n = start[row]
        for p in range(start[row], stop[row]):
            prefetch_some(code, candidate, p + AHEAD, min(p + AHEAD + 1, stop[row]))
            j = candidate[p]
            q = _dot(x[row], code[j]) * scale[j]
            v = q + latents.bias[j]
            upper = key(v + error_bound(q, v, latents.norm[j], slack[row], relative))
            candidate[n] = j
            n += upper >= least[row] and upper >= bound[j]
        kept[row] = n


@compiled
def _keep_largest(
    start: Any, stop: Any, candidate: Any, x: Any, code: Any, scale: Any, latents: Any, slack: Any,
    relative: Any, k: int, kept: Any,
) -> None:  # fmt: skip
    most = 0
    for row in range(start.shape[0]):
        most = max(most, stop[row] - start[row])
    lower, upper = np.empty(most, np.int32), np.empty(most, np.int32)
    for row in range(start.shape[0]):
        first, count = start[row], stop[row] - start[row]
        for i in range(count):
            prefetch_some(code, candidate, first + i + AHEAD, min(first + i + AHEAD + 1, stop[row]))
            j = candidate[first + i]
            q = _dot(x[row], code[j]) * scale[j]
            v = q + latents.bias[j]
            error = error_bound(q, v, latents.norm[j], slack[row], relative)
            lower[i], upper[i] = key(v - error), key(v + error)
        n = first
        if count > 0:
            least = kth_key(lower, count, k)
            for i in range(count):
                candidate[n] = candidate[first + i]
                n += upper[i] >= least
        kept[row] = n


@compiled_sum
def _dot(x: Any, code: Any) -> Any:
    dot = np.float32(0)
    for i in range(x.shape[0]):
        dot += x[i] * np.float32(code[i])
    return dot
