"""The settings of a training run. What is a fact of the cache (width, rows) comes from the cache."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from .optimizer_config import OptimizerConfig, ScheduleConfig
from .variants import AnyVariant

RESERVED_NAMES = {"config.yaml", "metrics.jsonl", "run.json", "results.json", "tensorboard", "wandb"}


class ExpectedCache(BaseModel):
    """What the cache must be; a cache that is something else is refused before the first step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str | None = None  # a prefix of at least 8 characters is enough
    model: str | None = None  # the model's name, as the harvest was given it


class InitialisationConfig(BaseModel):
    """Where training starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder_bias: Literal["geometric_median", "zeros"] = "geometric_median"
    median_rows: PositiveInt = 16384  # normalized training rows that the median is taken of


class CheckpointConfig(BaseModel):
    """When the whole state of training is saved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_steps: PositiveInt = 1000
    keep: PositiveInt = 2


class LogConfig(BaseModel):
    """What is written to metrics.jsonl, and where else it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_steps: PositiveInt = 50
    heldout_every_steps: PositiveInt | None = None  # a multiple of every_steps; null measures at the end only
    heldout_rows: NonNegativeInt = 8192  # held-out rows for heldout_fvu and heldout_l0; 0 measures none
    progress: bool = True
    tensorboard: bool = False  # needs the extra saecache[tensorboard]
    wandb_project: str | None = None  # needs the extra saecache[wandb]


class TrainConfig(BaseModel):
    """One pass over a cache that trains one or several SAEs, each batch read once for all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variants: Annotated[tuple[AnyVariant, ...], Field(min_length=1)]
    hook: str | None = None  # null: the cache's only hook
    normalization: Literal["unit", "none", "scale", "layer_norm"] | None = (
        None  # null: as the cache stores it
    )
    num_latents: PositiveInt | None = None  # give this
    expansion_factor: PositiveInt | None = None  # or this: latents = factor * width of the activations
    batch_rows: PositiveInt = 4096
    epochs: PositiveFloat | None = None  # give one of epochs,
    steps: PositiveInt | None = None  # steps,
    num_rows: PositiveInt | None = None  # and num_rows: how long to train
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    initialisation: InitialisationConfig = InitialisationConfig()
    dead_after_rows: PositiveInt = 10_000_000  # a latent not active on so many rows is dead, Gao et al. 2024
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    device: str = "auto"  # auto: cuda if there is a GPU, else cpu
    expect: ExpectedCache = ExpectedCache()

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        sizes = [n for n in ("num_latents", "expansion_factor") if getattr(self, n) is not None]
        if len(sizes) > 1 or (not sizes and any(v.num_latents is None for v in self.variants)):
            raise ValueError(
                f"give exactly one of num_latents and expansion_factor, got {sizes or 'neither'}"
            )
        lengths = [n for n in ("epochs", "steps", "num_rows") if getattr(self, n) is not None]
        if len(lengths) != 1:
            raise ValueError(
                f"give exactly one of epochs, steps and num_rows, got {lengths or 'none of them'}"
            )
        names = [variant.run_name.lower() for variant in self.variants]  # some file systems ignore case
        if taken := sorted(RESERVED_NAMES.intersection(names)):
            raise ValueError(f"a variant cannot be called {taken[0]}: the run's own files are")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"two variants are called {', '.join(doubled)}: give them different names (name: ...)"
            )
        every, heldout = self.log.every_steps, self.log.heldout_every_steps
        if heldout is not None and heldout % every:
            raise ValueError(
                f"log.heldout_every_steps={heldout} must be a multiple of log.every_steps={every}"
            )
        return self
