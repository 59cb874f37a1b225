"""Dense, differentiable functions that the definitions of several variants share."""

from collections.abc import Mapping

import torch
from torch import Tensor


def pre_activations(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[B, F]"""
    subtracted = parameters["b_in"] if "b_in" in parameters else parameters["b_dec"]
    return (x - subtracted) @ parameters["W_enc"].T + parameters["b_enc"]


def mean_square(error: Tensor) -> Tensor:
    """The mean over rows of their squared norm."""
    return error.square().sum(1).mean()


def auxk_loss(
    parameters: Mapping[str, Tensor], pre: Tensor, error: Tensor, dead: Tensor, k: int, coefficient: float
) -> dict[str, Tensor]:
    """Gao et al. 2024: the top k dead latents, after ReLU, reconstruct the residual, which is held fixed."""
    if not bool(dead.any()):
        return {}
    masked = pre.masked_fill(~dead, -torch.inf)
    top = masked.topk(k, dim=1).indices
    codes = torch.zeros_like(pre).scatter(1, top, pre.gather(1, top).relu())
    return {"auxk": coefficient * mean_square(codes @ parameters["W_dec"] - (-error).detach())}
