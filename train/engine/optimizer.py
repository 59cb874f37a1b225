"""The optimizer: tangential decoder gradients, clipping by the global norm, Adam(W), unit decoder rows."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from ...common.frozen import FrozenModel
from ..backends.choice import backend_of
from ..backends.plain.adam import TINY
from ..backends.protocol import AdamSettings

LearningRate = Literal["auto"] | PositiveFloat
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class OptimizerConfig(FrozenModel):
    """Adam or AdamW, the same for every parameter."""

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: LearningRate = "auto"  # auto: 2e-4 * sqrt(2**14 / latents), Gao et al. 2024, section 3
    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0  # adam adds it to the gradient, adamw subtracts it from the weights
    clip_norm: PositiveFloat | None = 1.0  # largest global gradient norm; null does not clip


class OptimizerOverrides(FrozenModel):
    """Settings of :class:`OptimizerConfig` for one variant; null takes the run's."""

    learning_rate: LearningRate | None = None
    betas: Betas | None = None
    eps: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None

    def applied_to(self, config: OptimizerConfig) -> OptimizerConfig:
        """A copy of ``config`` with these settings."""
        changes: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        return config.model_copy(update={key: value for key, value in changes.items() if value is not None})


class Optimizer:
    """Adam or AdamW over named parameters; the moments are plain tensors.

    With ``unit_norm_decoder`` the rows of ``W_dec`` keep norm 1: the gradient's part along each row is
    removed, which also lowers the global norm, and each updated row is divided by its norm.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Mapping[str, Tensor],
        *,
        unit_norm_decoder: bool,
        frozen: Iterable[str] = (),
    ) -> None:
        self.config = config
        self.unit_norm = {"W_dec"} if unit_norm_decoder else set()
        self.parameters = {name: tensor for name, tensor in parameters.items() if name not in set(frozen)}
        self.steps = torch.zeros((), dtype=torch.int64)
        self.sound: Tensor | None = None  # bool [] on the device: every loss and norm so far was finite
        self.exp_avg = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}

    def global_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The global norm of the gradients that a step uses, float64 []; not finite if an entry is not."""
        norms = [
            backend_of(tensor).gradient_norm(gradients[name], tensor if name in self.unit_norm else None)
            for name, tensor in self.parameters.items()
        ]
        return torch.stack(norms).square().sum().sqrt()

    def step(
        self,
        gradients: Mapping[str, Tensor],
        norm: Tensor,
        learning_rate: float,
        loss: Tensor | None = None,
    ) -> None:
        """Update every parameter in place; scale the gradients if their ``norm`` is above ``clip_norm``.

        From the first ``norm`` or ``loss`` (float64 []) on that is not finite, nothing is updated any more,
        and :attr:`sound` says so. The host reads neither.
        """
        self.steps += 1
        sound = finite(norm) if loss is None else finite(norm + loss)
        self.sound = sound if self.sound is None else self.sound.logical_and_(sound)
        settings = AdamSettings(
            learning_rate=learning_rate,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            decoupled=self.config.kind == "adamw",
            gradient_scale=torch.where(self.sound, clip_factor(norm, self.config.clip_norm), torch.nan),
        )
        for name, tensor in self.parameters.items():
            moments = self.exp_avg[name], self.exp_avg_sq[name]
            unit_rows = name in self.unit_norm
            backend = backend_of(tensor)
            backend.adam_step(
                tensor, gradients[name], *moments, int(self.steps), settings, unit_rows=unit_rows
            )

    def forget(self, latents: Tensor) -> None:
        """Set the moments of some latents (int64 [n]) to zero in all tensors."""
        for name in self.parameters.keys() - {"b_dec"}:  # the one tensor without latents
            self.exp_avg[name][latents] = 0
            self.exp_avg_sq[name][latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the optimizer's state by name (not copies), for checkpoints."""
        averages = {f"exp_avg.{name}": tensor for name, tensor in self.exp_avg.items()}
        squares = {f"exp_avg_sq.{name}": tensor for name, tensor in self.exp_avg_sq.items()}
        return {"steps": self.steps, **averages, **squares}


def clip_factor(norm: Tensor, limit: float | None) -> Tensor:
    """The factor that clipping multiplies gradients of a global ``norm`` (float64 []) by: float64 []."""
    if limit is None:
        return torch.ones_like(norm)
    return (limit / (norm + 1e-6)).clamp_max(1.0)


def finite(number: Tensor) -> Tensor:
    """Whether ``number`` [] is neither NaN nor infinite: bool []. One operation less than isfinite needs."""
    return number - number == 0


def normalize_rows(weights: Tensor) -> None:
    """Scale each row of ``weights`` [F, D] to norm 1, in place."""
    weights.div_(torch.linalg.vector_norm(weights, dim=1, keepdim=True).clamp_min_(TINY))
