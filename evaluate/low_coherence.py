"""Directions of which no two align: dictionaries with minimized mutual coherence.

Legend: n directions, D width.
"""

from math import sqrt

import torch
from torch import Tensor

from ..common.errors import UsageError

MOST_ITERATIONS = 3000
STEP, MOMENTUM = 0.02, 0.9
MARGIN = 0.95  # cosines above this share of the target are pushed down


def mutual_coherence(directions: Tensor) -> float:
    """The largest |cosine| of two of ``directions`` [n, D], rows of norm 1."""
    return float(_cosines(directions).abs().max())


def least_coherence(num: int, width: int) -> float:
    """What no ``num`` directions in ``width`` dimensions go below (Welch 1974)."""
    return sqrt((num - width) / (width * (num - 1))) if num > width else 0.0


@torch.no_grad()
def low_coherence_directions(num: int, width: int, target: float, seed: int) -> Tensor:
    """``num`` unit vectors with mutual coherence of at most ``target``: float32 [num, width].

    Random ones, then gradient steps on the squares of what the |cosines| exceed the target by.

    Raises:
        UsageError: the target is below Welch's bound, or not reached.
    """
    bound = least_coherence(num, width)
    if target <= bound:
        raise UsageError(
            f"coherence={target:g}: {num} directions in {width} dimensions have at least {bound:.4f} "
            "(Welch's bound, which few sets reach): ask for more, or for fewer features"
        )
    generator = torch.Generator().manual_seed(seed)
    found = _unit(torch.randn(num, width, generator=generator))
    velocity = torch.zeros_like(found)
    for _ in range(MOST_ITERATIONS):
        cosines = _cosines(found)
        if float(cosines.abs().max()) <= target:
            return found
        excess = cosines - cosines.clamp(-MARGIN * target, MARGIN * target)
        velocity = MOMENTUM * velocity - STEP * (excess @ found)
        found = _unit(found + velocity)
    raise UsageError(
        f"coherence={target:g}: {num} directions in {width} dimensions came down to "
        f"{mutual_coherence(found):.4f} only (Welch's bound is {bound:.4f}): ask for more"
    )


def _cosines(directions: Tensor) -> Tensor:
    cosines = directions @ directions.T
    cosines.fill_diagonal_(0)
    return cosines


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return unit
