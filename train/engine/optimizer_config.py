"""Settings of the optimizer and of the learning rate over the steps."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from ...common.frozen import FrozenModel

LearningRate = Literal["auto"] | PositiveFloat
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class OptimizerConfig(FrozenModel):
    """Adam or AdamW, the same for every parameter."""

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: LearningRate = "auto"  # auto: 2e-4 * sqrt(2**14 / latents), Gao et al. 2024, section 3
    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0  # adam adds it to the gradient, adamw takes it from the weights
    clip_norm: PositiveFloat | None = 1.0  # global gradient norm; null switches clipping off


class OptimizerOverrides(FrozenModel):
    """Settings of :class:`OptimizerConfig` that one variant changes; null keeps the run's."""

    learning_rate: LearningRate | None = None
    betas: Betas | None = None
    eps: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None

    def applied_to(self, config: OptimizerConfig) -> OptimizerConfig:
        """``config`` with these changes."""
        changes: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        return config.model_copy(update={key: value for key, value in changes.items() if value is not None})


class ScheduleConfig(FrozenModel):
    """Factor on the learning rate over the run. Numbers below 1 are fractions of it, others are steps."""

    warmup: NonNegativeFloat = 0.02  # linear from 0
    decay: Literal["constant", "linear", "cosine"] = "linear"
    decay_start: NonNegativeFloat = 0.8  # where the decay begins; it ends with the run
    final: Annotated[float, Field(ge=0, le=1)] = 0.0  # what the decay comes down to
