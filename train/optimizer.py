"""One optimizer step: tangential decoder gradient, clipped global norm, Adam(W), decoder rows of norm 1."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .optimizer_config import OptimizerConfig

TINY = 1e-12  # keeps a decoder row of zeros from becoming NaN
NORM_ROWS = 4096  # rows of a matrix worked on at a time, so that temporaries stay small


class Optimizer:
    """Adam or AdamW (torch's fused ones) over named parameters, with their moments as plain tensors."""

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Mapping[str, Tensor],
        *,
        unit_norm_decoder: bool,
        frozen: Iterable[str] = (),
    ) -> None:
        self.clip_norm = config.clip_norm
        self.unit_norm_decoder = unit_norm_decoder
        self.parameters = {name: tensor for name, tensor in parameters.items() if name not in set(frozen)}
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.kind]
        self._adam = kind(
            list(self.parameters.values()),
            lr=0.0,  # every step brings its own
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for tensor in self.parameters.values():
            self._adam.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }

    def prepare(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Make the decoder's gradient tangential, in place; the global norm of what is left, float64 []."""
        if self.unit_norm_decoder:
            remove_parallel_part(gradients["W_dec"], self.parameters["W_dec"])
        return global_norm(gradients[name] for name in self.parameters)

    def step(self, gradients: Mapping[str, Tensor], norm: Tensor, learning_rate: float) -> None:
        """Clip to ``clip_norm``, update every parameter, and put the decoder's rows back to norm 1."""
        clip = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (float(norm) + 1e-6))
        for name, tensor in self.parameters.items():
            tensor.grad = gradients[name].mul_(clip) if clip < 1 else gradients[name]
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        for tensor in self.parameters.values():
            tensor.grad = None
        if self.unit_norm_decoder:
            normalize_rows(self.parameters["W_dec"])

    def forget(self, latents: Tensor) -> None:
        """Set the moments of some latents (int64 [n]) to zero in every tensor that has a row per latent."""
        num_latents = self.parameters["W_enc"].shape[0]
        for tensor in self.parameters.values():
            if tensor.shape[0] == num_latents:
                self._adam.state[tensor]["exp_avg"][latents] = 0
                self._adam.state[tensor]["exp_avg_sq"][latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The live state, by name, for checkpoints."""
        return {
            f"{key}.{name}": self._adam.state[tensor][key]
            for name, tensor in self.parameters.items()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }


def remove_parallel_part(gradient: Tensor, weights: Tensor) -> None:
    """Take from each row of ``gradient`` [F, D] its part along the unit row of ``weights``, in place."""
    for g, w in zip(torch.split(gradient, NORM_ROWS), torch.split(weights, NORM_ROWS), strict=True):
        g.addcmul_((g * w).sum(1, keepdim=True), w, value=-1)


def normalize_rows(weights: Tensor) -> None:
    """Scale each row of ``weights`` [F, D] to norm 1, in place."""
    for w in torch.split(weights, NORM_ROWS):
        w.div_(torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min_(TINY))


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """L2 norm of all the entries of all ``tensors``: by rows in float32, over rows in float64."""
    squares = [torch.linalg.vector_norm(t, dim=-1).double().square().sum() for t in tensors]
    return torch.stack(squares).sum().sqrt()
