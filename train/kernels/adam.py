"""The optimizer's pass over one matrix: clipped, tangential gradient, Adam(W), rows back to norm 1, in one
sweep.

Separate passes for the parallel part and the norm cost more than the update itself: each reads and writes
the whole matrix again, and here the row is in the core's cache already.

Legend: F rows (latents), D columns.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compile import compiled, compiled_sum
from .dispatch import use_compiled
from .matmul import total
from .threads import even_part, run_parts

TINY = 1e-12  # keeps a row of zeros from becoming NaN


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Of one step. Kingma & Ba 2015; ``decoupled`` is AdamW, Loshchilov & Hutter 2019."""

    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.0
    decoupled: bool = False  # weight decay taken from the weights, not added to the gradient
    gradient_scale: float = 1.0  # multiplies the gradient first: clipping


def gradient_norm(gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
    """L2 norm of ``gradient`` [F, D] (or [D]): float64 []. NaN or infinity when an entry is.

    With ``unit_rows_of`` [F, D], of what is left of each row after its part along that row is removed.
    """
    weights = None if unit_rows_of is None else unit_rows_of.detach()
    if not use_compiled(gradient, weights):
        left = gradient if weights is None else gradient - _along(gradient, weights) * weights
        row_norms: Tensor = torch.linalg.vector_norm(left, dim=-1)
        return total(row_norms.double().square()).sqrt()
    g = gradient.detach().reshape(-1, gradient.shape[-1])
    squares = torch.empty(g.shape[0], dtype=torch.float64)
    arrays = (
        g.numpy(),
        g.numpy() if weights is None else weights.numpy(),
        weights is not None,
        squares.numpy(),
    )
    run_parts(lambda first, last: _row_squares(*arrays, first, last), g.shape[0], even_part(g.shape[0]))
    return total(squares).sqrt()


def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    settings: AdamSettings,
    *,
    unit_rows: bool = False,
) -> None:
    """Update ``parameter`` [F, D] (or [D]) and its moments in place; ``gradient`` stays as it is on the CPU.

    Args:
        step: 1 for the first.
        unit_rows: the rows have norm 1 and keep it: the gradient's part along each row is removed, and the
            updated row is divided by its norm.
    """
    if not use_compiled(parameter, gradient, exp_avg, exp_avg_sq):
        _adam_torch(parameter, gradient, exp_avg, exp_avg_sq, step, settings, unit_rows)
        return
    width = parameter.shape[-1]
    arrays = [t.detach().reshape(-1, width).numpy() for t in (parameter, gradient, exp_avg, exp_avg_sq)]
    beta1, beta2 = settings.betas
    numbers = np.array(
        [
            settings.gradient_scale,
            0.0 if settings.decoupled else settings.weight_decay,
            1 - settings.learning_rate * settings.weight_decay if settings.decoupled else 1.0,
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            settings.learning_rate / (1 - beta1**step),
            1 / sqrt(1 - beta2**step),
            settings.eps,
        ],
        dtype=np.float32,
    )
    rows = arrays[0].shape[0]
    run_parts(lambda first, last: _adam_rows(*arrays, numbers, unit_rows, first, last), rows, even_part(rows))


def _along(gradient: Tensor, weights: Tensor) -> Tensor:
    """Coefficient of each row of ``gradient`` along the row of ``weights``: [F, 1]."""
    return (gradient * weights).sum(-1, keepdim=True) / weights.square().sum(-1, keepdim=True).clamp_min(TINY)


def _adam_torch(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    settings: AdamSettings,
    unit_rows: bool,
) -> None:
    if unit_rows:
        gradient = gradient - _along(gradient, parameter) * parameter
    gradient = gradient * settings.gradient_scale
    if settings.decoupled:
        parameter.mul_(1 - settings.learning_rate * settings.weight_decay)
    elif settings.weight_decay:
        gradient = gradient.add(parameter, alpha=settings.weight_decay)
    beta1, beta2 = settings.betas
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = exp_avg_sq.sqrt().div_(sqrt(1 - beta2**step)).add_(settings.eps)
    parameter.addcdiv_(exp_avg, denominator, value=-settings.learning_rate / (1 - beta1**step))
    if unit_rows:
        parameter.div_(torch.linalg.vector_norm(parameter, dim=-1, keepdim=True).clamp_min(TINY))


@compiled_sum
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@compiled_sum
def _squares_off(g: Any, w: Any, along: Any) -> Any:
    total = np.float32(0)
    for j in range(g.shape[0]):
        left = g[j] - along * w[j]
        total += left * left
    return total


@compiled
def _row_squares(gradient: Any, weights: Any, tangential: Any, squares: Any, first: Any, last: Any) -> None:
    tiny = np.float32(TINY)
    for f in range(first, last):
        g, w = gradient[f], weights[f]
        if tangential:
            squares[f] = _squares_off(g, w, _dot(g, w) / max(_dot(w, w), tiny))
        else:
            squares[f] = _dot(g, g)


@compiled
def _adam_rows(
    parameter: Any, gradient: Any, mean: Any, square: Any, n: Any, unit_rows: Any, first: Any, last: Any
) -> None:
    scale, decay, keep, beta1, rest1, beta2, rest2, rate, correction, eps = (
        n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9],
    )  # fmt: skip
    tiny = np.float32(TINY)
    for f in range(first, last):
        p, g, m, s = parameter[f], gradient[f], mean[f], square[f]
        along = np.float32(0)
        if unit_rows:
            along = _dot(g, p) / max(_dot(p, p), tiny)
        for j in range(p.shape[0]):
            d = (g[j] - along * p[j]) * scale + decay * p[j]
            m[j] = beta1 * m[j] + rest1 * d
            s[j] = beta2 * s[j] + rest2 * d * d
            p[j] = keep * p[j] - rate * m[j] / (np.sqrt(s[j]) * correction + eps)
        if unit_rows:
            norm = max(np.sqrt(_dot(p, p)), tiny)
            for j in range(p.shape[0]):
                p[j] /= norm
