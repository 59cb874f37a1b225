"""The optimizer's step for a matrix in one sweep: clipping, tangential gradient, Adam(W), rows of norm 1.

Separate passes for the tangential gradient and the norm would cost more than the update: each would read and
write the whole matrix again, while here the row is already in the core's cache.

Legend: F rows (latents), D columns.
"""

from math import isnan, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plain.adam import TINY
from ..protocol import AdamSettings
from ..threads import even_part, run_parts
from .compile import compiled, compiled_sum


def row_squares(gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
    """See :meth:`..protocol.Backend.row_squares`."""
    weights = None if unit_rows_of is None else unit_rows_of.detach()
    g = gradient.detach().reshape(-1, gradient.shape[-1])
    squares = torch.empty(g.shape[0], dtype=torch.float64)
    arrays = (
        g.numpy(),
        g.numpy() if weights is None else weights.numpy(),
        weights is not None,
        squares.numpy(),
    )
    run_parts(lambda first, last: _row_squares(*arrays, first, last), g.shape[0], even_part(g.shape[0]))
    return squares


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
    """See :meth:`..protocol.Backend.adam_step`."""
    scale = float(settings.gradient_scale)
    if isnan(scale):
        return
    assert parameter.is_contiguous() and gradient.is_contiguous(), "both are whole tensors"
    width = parameter.shape[-1]
    arrays = [t.detach().reshape(-1, width).numpy() for t in (parameter, gradient, exp_avg, exp_avg_sq)]
    beta1, beta2 = settings.betas
    numbers = np.array(
        [
            scale,
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


@compiled_sum
def _dot(a: Any, b: Any) -> Any:
    dot = np.float32(0)
    for j in range(a.shape[0]):
        dot += a[j] * b[j]
    return dot


@compiled_sum
def _squares_off(g: Any, w: Any, along: Any) -> Any:
    squares = np.float32(0)
    for j in range(g.shape[0]):
        left = g[j] - along * w[j]
        squares += left * left
    return squares


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
