"""The optimizer's step in torch operations. Legend: F rows (latents), D columns."""

from math import isnan, sqrt

import torch
from torch import Tensor

from ..protocol import AdamSettings

TINY = 1e-12  # keeps a row of zeros from becoming NaN


def row_squares(gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
    """See :meth:`..protocol.Backend.row_squares`."""
    left = gradient if unit_rows_of is None else gradient - _along(gradient, unit_rows_of) * unit_rows_of
    row_norms: Tensor = torch.linalg.vector_norm(left, dim=-1)
    return row_norms.double().square()


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
    """See :meth:`..protocol.Backend.adam_step`. The scale is read from the device."""
    scale = float(settings.gradient_scale)
    if isnan(scale):
        return
    if unit_rows:
        gradient = gradient - _along(gradient, parameter) * parameter
    gradient = gradient * scale
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


def _along(gradient: Tensor, weights: Tensor) -> Tensor:
    """The coefficient of each row of ``gradient`` along the same row of ``weights``: [F, 1]."""
    return (gradient * weights).sum(-1, keepdim=True) / weights.square().sum(-1, keepdim=True).clamp_min(TINY)
