"""The learning rate: its default value, which depends on the number of latents, and its schedule."""

from math import cos, pi, sqrt
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from ...common.frozen import FrozenModel
from .optimizer import OptimizerConfig


class ScheduleConfig(FrozenModel):
    """The factor on the peak learning rate. Durations below 1 are fractions of the run, others are steps."""

    warmup: NonNegativeFloat = 0.02  # the factor rises linearly from 0 for so long
    decay: Literal["constant", "linear", "cosine"] = "linear"
    decay_start: NonNegativeFloat = 0.8  # when the decay begins; it ends with the run
    final: Annotated[float, Field(ge=0, le=1)] = 0.0  # the factor at the end of the decay


def peak_learning_rate(config: OptimizerConfig, num_latents: int) -> float:
    """The configured rate; ``auto`` gives 2e-4 * sqrt(2**14 / F) (the 1 / sqrt(F) law of Gao et al. 2024)."""
    if config.learning_rate == "auto":
        return 2e-4 * sqrt(2**14 / num_latents)
    return config.learning_rate


def learning_rate_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """The factor in [0, 1] on the peak rate in the 0-based ``step``: linear warmup times the decay."""
    warmup = in_steps(config.warmup, num_steps)
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    start = in_steps(config.decay_start, num_steps)
    if config.decay == "constant" or step < start:
        return factor
    progress = (step - start) / (num_steps - start)
    shape = 1 - progress if config.decay == "linear" else (1 + cos(pi * progress)) / 2
    return factor * (config.final + (1 - config.final) * shape)


def in_steps(value: float, num_steps: int) -> int:
    """Convert a duration to steps: a ``value`` below 1 is a fraction of the run."""
    return round(value * num_steps) if value < 1 else round(value)
