"""Normalizations of a row, each invertible.

Legend: x raw row [D]; mean = mean of x over D; norm = L2 norm of x - mean; u = (x - mean) / norm (0 where
norm is 0).

=============  ==========================  ==========================
kind           y                           x again
=============  ==========================  ==========================
``unit``       u                           y * norm + mean
``layer_norm`` u * sqrt(D)                 y / sqrt(D) * norm + mean
``scale``      x * scale                   y / scale
``unit_scale`` x * scale                   y / scale
``none``       x                           y
=============  ==========================  ==========================

``scale`` is one number for all rows: sqrt(D / E|x|^2) over the training rows, so that E|y|^2 = D; in
``unit_scale`` sqrt(1 / E|x|^2), so that E|y|^2 = 1.
"""

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..common.errors import UsageError

NormalizationKind = Literal["unit", "none", "scale", "unit_scale", "layer_norm"]
NORMALIZATIONS: tuple[str, ...] = get_args(NormalizationKind)
SCALED = ("scale", "unit_scale")  # by one number for all rows


@dataclass(frozen=True)
class RowState:
    """What ``apply`` removed from each row: mean and norm [..., 1]; None where the kind needs neither."""

    mean: Tensor | None = None
    norm: Tensor | None = None


@dataclass(frozen=True)
class Normalizer:
    """One normalization of rows of width ``d_model``; ``scale`` is of the kinds in :data:`SCALED` only."""

    kind: NormalizationKind
    d_model: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in NORMALIZATIONS:
            raise UsageError(f"normalization {self.kind!r}: expected one of {', '.join(NORMALIZATIONS)}")
        if not (isfinite(self.scale) and self.scale > 0):
            raise UsageError(f"normalization scale must be a positive number, got {self.scale}")

    @classmethod
    def of_mean_square(cls, kind: NormalizationKind, d_model: int, mean_square: float) -> "Normalizer":
        """For rows whose E|x|^2 is ``mean_square``; of rows that are all zeros the scale is 1."""
        wanted = {"scale": float(d_model), "unit_scale": 1.0}.get(kind)
        if wanted is None or mean_square <= 0:
            return cls(kind, d_model)
        return cls(kind, d_model, scale=sqrt(wanted / mean_square))

    def apply(self, x: Tensor) -> tuple[Tensor, RowState]:
        """Raw rows [..., D] to normalized rows [..., D], and what ``invert`` needs to undo it."""
        if self.kind == "none":
            return x, RowState()
        if self.kind in SCALED:
            return x * self.scale, RowState()
        mean = x.mean(dim=-1, keepdim=True)
        centered = x - mean
        norm = torch.linalg.vector_norm(centered, dim=-1, keepdim=True)
        y = torch.where(norm > 0, centered / norm, torch.zeros_like(centered))
        return (y * sqrt(self.d_model) if self.kind == "layer_norm" else y), RowState(mean, norm)

    def invert(self, y: Tensor, state: RowState) -> Tensor:
        """Normalized rows [..., D] (or their reconstructions) back to raw rows [..., D]."""
        if self.kind == "none":
            return y
        if self.kind in SCALED:
            return y / self.scale
        assert state.mean is not None and state.norm is not None, "the state comes from apply() of this kind"
        norm = state.norm / sqrt(self.d_model) if self.kind == "layer_norm" else state.norm
        return y * norm + state.mean

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "d_model": self.d_model, "scale": self.scale}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Normalizer":
        return cls(kind=values["kind"], d_model=int(values["d_model"]), scale=float(values["scale"]))
