"""Normalizations of a row, each invertible. A new one is one entry in :data:`KINDS`.

Legend: x raw row [D]; mean = mean of x over D; norm = L2 norm of x - mean; u = (x - mean) / norm (0 where
norm is 0), the unit row.

Every kind is y = start * factor, where start is x or u. A kind therefore declares which of the two it starts
from and its factor, and both directions follow: start = y / factor, and x = u * norm + mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..common.errors import UsageError

Start = Literal["raw", "unit"]
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Kind:
    """What a kind starts from, and what it multiplies a row by: width_factor(D) * scale * row_factor(row).

    Raises:
        ValueError: a kind with ``mean_square``, whose scale alone settles E|y|^2, has another factor too.
    """

    starts_from: Start
    width_factor: Callable[[int], float] = lambda d_model: 1.0
    # D -> E|y|^2 over the training rows, which one number for all rows, ``scale``, brings about. It needs the
    # statistic E|x|^2; of a kind without it ``scale`` is 1.
    mean_square: Callable[[int], float] | None = None
    # Start rows [..., D] -> a factor for each row, [..., 1], finite and not 0.
    row_factor: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.mean_square is not None and (self.width_factor(4) != 1 or self.row_factor is not None):
            raise ValueError("a kind with mean_square has no other factor: its scale settles E|y|^2 alone")


def _per_norm(x: Tensor) -> Tensor:
    """1 / |x| of each row, [..., 1]; 1 for a row of zeros, which any factor leaves as it is."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > 0, 1 / norm, torch.ones_like(norm))


KINDS: dict[str, Kind] = {
    "unit": Kind("unit"),
    "none": Kind("raw"),
    "scale": Kind("raw", mean_square=float),
    "unit_scale": Kind("raw", mean_square=lambda d_model: 1.0),
    "layer_norm": Kind("unit", width_factor=sqrt),
    "rms_norm": Kind("raw", width_factor=sqrt, row_factor=_per_norm),  # x sqrt(D) / |x|: the mean stays
}
NORMALIZATIONS = tuple(KINDS)
if TYPE_CHECKING:
    NormalizationKind = str
else:
    NormalizationKind = Literal[NORMALIZATIONS]


def is_invertible_alone(kind: str) -> bool:
    """Whether a normalized row of this kind can be inverted without having seen the raw row."""
    return KINDS[kind].starts_from == "raw" and KINDS[kind].row_factor is None


@dataclass(frozen=True)
class RowState:
    """What ``apply`` did to each row: mean and norm [..., 1] of kinds that start from u, and the factor."""

    mean: Tensor | None = None
    norm: Tensor | None = None
    factor: Tensor | float = 1.0


@dataclass(frozen=True)
class Normalizer:
    """One normalization of rows of width ``d_model``; ``scale`` is used only by kinds that need E|x|^2.

    Raises:
        UsageError: there is no such kind, or ``scale`` is not a positive number, nor its inverse, in float32.
    """

    kind: str
    d_model: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"normalization {self.kind!r}: expected one of {', '.join(KINDS)}")
        if not SMALLEST_SCALE <= self.scale <= 1 / SMALLEST_SCALE:  # NaN is not
            raise UsageError(
                f"normalization scale must be a positive number that float32 rows can be multiplied with and "
                f"divided by, from {SMALLEST_SCALE:.3g} to {1 / SMALLEST_SCALE:.3g}, got {self.scale}"
            )

    @classmethod
    def of_mean_square(cls, kind: str, d_model: int, mean_square: float) -> "Normalizer":
        """For rows whose E|x|^2 is ``mean_square``; if all rows are zeros the scale is 1."""
        target = KINDS[kind].mean_square
        if target is None or mean_square <= 0:
            return cls(kind, d_model)
        return cls(kind, d_model, scale=sqrt(target(d_model) / mean_square))

    @property
    def root_mean_square(self) -> float | None:
        """sqrt(E|y|^2), where the kind settles it: of each row, or over the training rows; else None."""
        kind = KINDS[self.kind]
        if kind.mean_square is not None:
            return sqrt(kind.mean_square(self.d_model))
        unit_rows = kind.starts_from == "unit" and kind.row_factor is None
        return kind.width_factor(self.d_model) if unit_rows else None

    @property
    def starts_from(self) -> Start:
        """Which rows the factor multiplies: raw rows x or unit rows u."""
        return KINDS[self.kind].starts_from

    @property
    def factor(self) -> float | None:
        """The factor if it is the same for all rows, else None."""
        return self._shared_factor if KINDS[self.kind].row_factor is None else None

    @property
    def _shared_factor(self) -> float:
        kind = KINDS[self.kind]
        return kind.width_factor(self.d_model) * (1.0 if kind.mean_square is None else self.scale)

    def _factor_of(self, start: Tensor) -> Tensor | float:
        row_factor = KINDS[self.kind].row_factor
        return self._shared_factor if row_factor is None else row_factor(start) * self._shared_factor

    def finish(self, start: Tensor) -> None:
        """Turn rows that this kind starts from, [..., D], into normalized rows, in place."""
        if self.factor != 1:
            start.mul_(self._factor_of(start))

    def apply(self, x: Tensor) -> tuple[Tensor, RowState]:
        """Raw rows [..., D] to normalized rows [..., D], and what ``invert`` needs to undo it."""
        if self.starts_from == "raw":
            factor = self._factor_of(x)
            return (x if self.factor == 1 else x * factor), RowState(factor=factor)
        mean = x.mean(dim=-1, keepdim=True)
        centered = x - mean
        norm = torch.linalg.vector_norm(centered, dim=-1, keepdim=True)
        u = torch.where(norm > 0, centered / norm, torch.zeros_like(centered))
        factor = self._factor_of(u)
        return (u if self.factor == 1 else u * factor), RowState(mean, norm, factor)

    def invert(self, y: Tensor, state: RowState) -> Tensor:
        """Normalized rows [..., D] (or their reconstructions) back to raw rows [..., D]."""
        if self.starts_from == "raw":
            return y if self.factor == 1 else y / state.factor
        assert state.mean is not None and state.norm is not None, "the state comes from apply() of this kind"
        return y * (state.norm / state.factor) + state.mean

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, which :meth:`from_dict` reads."""
        return {"kind": self.kind, "d_model": self.d_model, "scale": self.scale}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Normalizer":
        """What :meth:`to_dict` wrote."""
        return cls(kind=values["kind"], d_model=int(values["d_model"]), scale=float(values["scale"]))
