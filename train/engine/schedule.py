"""The learning rate: its default for a number of latents, and its course over the steps."""

from math import cos, pi, sqrt
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from ...common.frozen import FrozenModel
from .optimizer import OptimizerConfig


class ScheduleConfig(FrozenModel):
    """Factor on the learning rate over the run. Numbers below 1 are fractions of it, others are steps."""

    warmup: NonNegativeFloat = 0.02  # linear from 0
    decay: Literal["constant", "linear", "cosine"] = "linear"
    decay_start: NonNegativeFloat = 0.8  # where the decay begins; it ends with the run
    final: Annotated[float, Field(ge=0, le=1)] = 0.0  # what the decay comes down to


def peak_learning_rate(config: OptimizerConfig, num_latents: int) -> float:
    """The configured rate; ``auto`` is 2e-4 * sqrt(2**14 / F): it falls as 1 / sqrt(F), Gao et al. 2024."""
    if config.learning_rate == "auto":
        return 2e-4 * sqrt(2**14 / num_latents)
    return config.learning_rate


def learning_rate_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Factor in [0, 1] on the peak rate for the 0-based ``step``: linear warmup times the decay."""
    warmup = in_steps(config.warmup, num_steps)
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    start = in_steps(config.decay_start, num_steps)
    if config.decay == "constant" or step < start:
        return factor
    progress = (step - start) / (num_steps - start)
    shape = 1 - progress if config.decay == "linear" else (1 + cos(pi * progress)) / 2
    return factor * (config.final + (1 - config.final) * shape)


def in_steps(value: float, num_steps: int) -> int:
    """A point of the run as a number of steps: fractions below 1 are of the whole run."""
    return round(value * num_steps) if value < 1 else round(value)
