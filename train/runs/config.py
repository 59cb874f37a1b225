"""The settings of a training run. The width and the number of rows are not settings: the cache has them."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ...common.counts import PositiveCount, Seed
from ...common.frozen import FrozenModel
from ...common.validation import Settings
from ...store.normalization import NORMALIZATIONS, NormalizationKind, is_invertible_alone
from ..engine.optimizer import OptimizerConfig
from ..engine.schedule import ScheduleConfig
from ..run_files import is_reserved
from ..variants import AnyVariant
from ..variants.base.variant import Variant
from . import grid
from .layout import ParallelConfig


class ExpectedCache(FrozenModel):
    """The cache that the config was written for; any other is refused before the first step."""

    fingerprint: str | None = None  # or a prefix of at least 8 characters
    model: str | None = None  # the model's name that harvest was called with


class InitialisationConfig(FrozenModel):
    """The initial parameters."""

    directions: Literal["isotropic", "orthogonal"] = "isotropic"  # of W_dec's rows; orthogonal in sets of D
    encoder: Literal["tied", "independent"] = "tied"  # tied: W_enc starts as a multiple of W_dec
    encoder_norm: PositiveFloat = 0.5  # norm of the initial rows of W_enc; those of W_dec have norm 1
    # Of a transcoder. zeros: W_dec starts at 0, its rows may have any norm, and W_enc gets the directions.
    decoder: Literal["directions", "zeros"] = "directions"
    # Of the rows to reconstruct; a transcoder's b_in is that of the rows to encode.
    decoder_bias: Literal["geometric_median", "mean", "zeros"] = "geometric_median"
    median_rows: PositiveCount = 16384  # normalized training rows that median or mean are taken of


class TargetConfig(FrozenModel):
    """What a transcoder predicts from the rows that it encodes, for the same tokens."""

    hook: str  # * stands for the block of the hook that is encoded: mlp_out.*
    # A kind that divides each row by its own norm could not be inverted for a row that is only predicted.
    normalization: NormalizationKind = "unit_scale"  # E|y|² = 1
    skip: bool = False  # adds W_skip x, an affine skip connection
    # One transcoder of all hooks: the latents of each write to its target and to those of all later hooks
    cross_layer: bool = False

    @field_validator("normalization")
    @classmethod
    def _can_be_inverted(cls, kind: str) -> str:
        if not is_invertible_alone(kind):
            able = ", ".join(name for name in NORMALIZATIONS if is_invertible_alone(name))
            raise ValueError(
                f"target.normalization {kind} multiplies every row by a number of its own, which "
                f"nobody knows of a row that is predicted: take one of {able}"
            )
        return kind

    @model_validator(mode="after")
    def _cross_layer_goes_without_skip(self) -> Self:
        if self.cross_layer and self.skip:
            raise ValueError("a cross-layer transcoder has no skip connection: set target.skip=false")
        return self


class CalibrationConfig(FrozenModel):
    """Set inference thresholds on held-out rows at the end of a run; kinds without one do not change."""

    l0: PositiveFloat | None = None  # wanted mean of active latents a row; null: what the rule trained for
    rows: PositiveCount = 16384  # at most so many, of the last quarter; evaluation measures the rows before


class CheckpointConfig(FrozenModel):
    """When the state of training is saved."""

    every_steps: PositiveInt = 1000
    keep: PositiveInt = 2  # older checkpoints are removed


class LogConfig(FrozenModel):
    """When metrics are written to metrics.jsonl, and where else they go."""

    every_steps: PositiveInt = 50
    heldout_every_steps: PositiveCount | None = (
        None  # a multiple of every_steps; null measures at the end only
    )
    heldout_rows: NonNegativeInt = 8192  # held-out rows for heldout_fvu and heldout_l0; 0 measures none
    progress: bool = True
    tensorboard: bool = False  # needs the extra saecache[tensorboard]
    wandb_project: str | None = None  # needs the extra saecache[wandb]


class TrainConfig(Settings):
    """The settings of a run that trains one or several SAEs together: each batch is read once for all.

    A list in the settings of a variant is a grid (see :mod:`.grid`): ``{kind: topk, k: [4, 8, 16]}``.
    """

    alternatives: ClassVar = (("num_latents", "expansion_factor"), ("epochs", "steps", "num_rows"))

    variants: Annotated[tuple[AnyVariant, ...], Field(min_length=1)]
    # A trained SAE that every variant starts from: a folder of ours or of another library, or hf://ORG/NAME.
    init: str | None = None
    # Further caches of the same tokens by name, as of a tuned model: their hooks are NAME:resid_post.3
    beside: dict[str, str] = Field(default_factory=dict)
    # null: the cache's only hook, or that of init. Several hooks get an SAE each: all, a list, resid_post.*
    hook: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    normalization: NormalizationKind | None = None  # null: as the cache stores it
    target: TargetConfig | None = None  # makes transcoders, which predict the rows of another hook
    crosscoder: bool = False  # one SAE for all of the hooks, whose rows it reads side by side
    num_latents: PositiveCount | None = None  # give this
    expansion_factor: PositiveInt | None = None  # or this: latents = factor * width of the activations
    batch_rows: PositiveCount = 4096
    # Batches whose gradients, averaged, make one step. A rule that compares rows compares those of one batch.
    accumulate_batches: PositiveCount = 1
    cache_rows: PositiveCount | None = None  # use only the first rows of the cache, a uniform sample of them
    sink_ratio: PositiveFloat | None = None  # leaves out rows of a norm above this multiple of the median
    epochs: Annotated[float, Field(gt=0, lt=1e12)] | None = None  # give one of epochs,
    steps: PositiveCount | None = None  # steps,
    num_rows: PositiveCount | None = None  # and num_rows: how long to train
    seed: Seed = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    initialisation: InitialisationConfig = InitialisationConfig()
    calibration: CalibrationConfig | None = None  # null: thresholds stay the running means
    matmul_precision: Literal["highest", "high", "medium"] = (
        "highest"  # of torch's float32 products; medium may multiply in bfloat16. Selections stay exact
    )
    dead_after_rows: PositiveCount = (
        10_000_000  # a latent not active on so many rows is dead, Gao et al. 2024
    )
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    device: str = "auto"  # auto: cuda if there is a GPU, else cpu
    expect: ExpectedCache = ExpectedCache()
    parallel: ParallelConfig = ParallelConfig()

    @field_validator("variants", mode="before")
    @classmethod
    def _expand_grids(cls, entries: Any) -> Any:
        return grid.expand(entries)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        sizes, lengths = (
            [name for name in group if getattr(self, name) is not None] for group in self.alternatives
        )
        missing = self.init is None and any(v.num_latents is None for v in self.variants)
        if len(sizes) > 1 or (not sizes and missing):
            raise ValueError(
                f"give exactly one of num_latents and expansion_factor, got {sizes or 'neither'}"
                f"{': set the other to null' if sizes else ''}"
            )
        if len(lengths) != 1:
            raise ValueError(
                f"give exactly one of epochs, steps and num_rows, got {lengths or 'none of them'}"
                f"{': set the others to null' if lengths else ''}"
            )
        if self.init is not None and self.initialisation != InitialisationConfig():
            raise ValueError(
                "initialisation has no effect on a run that starts from a trained SAE (init): leave it out, "
                "or set initialisation={}"
            )
        if self.crosscoder and self.target is not None:
            raise ValueError("a crosscoder reconstructs what it encodes: leave out target, or crosscoder")
        if self.initialisation.decoder == "zeros" and self.target is None:
            raise ValueError(
                "initialisation.decoder=zeros is for transcoders: set target.hook, or leave it out"
            )
        names = [variant.run_name.lower() for variant in self.variants]  # some file systems ignore case
        if taken := [name for name in names if is_reserved(name)]:
            raise ValueError(
                f"a variant cannot be called {taken[0]}, which is a file of the run: give another name"
            )
        _check_names(self.variants)
        every, heldout = self.log.every_steps, self.log.heldout_every_steps
        if heldout is not None and heldout % every:
            raise ValueError(
                f"log.heldout_every_steps={heldout} must be a multiple of log.every_steps={every}"
            )
        return self


def _check_names(variants: Sequence[Variant]) -> None:
    """Check that every variant has a folder of its own; some file systems ignore case.

    Raises:
        ValueError: two variants have one name. The message proposes names that tell them apart.
    """
    by_name: dict[str, Variant] = {}
    for variant in variants:
        name = variant.run_name
        if (other := by_name.setdefault(name.lower(), variant)) is variant:
            continue
        settings = grid.differing_settings([variant, other])
        if not settings:
            raise ValueError(f"two variants are called {name} and are the same: leave one out")
        if settings[0] == "name":
            raise ValueError(f"two variants are called {name} and {other.run_name}: give different names")
        example = _name_for_grid(
            [one for one in variants if (one.kind, one.name) == (variant.kind, variant.name)]
        )
        raise ValueError(
            f"two variants are called {name}: they differ in {settings[0]}, which the name does not show; "
            f"give different names; in a grid, put the setting in braces (name: {example!r})"
        )


def _name_for_grid(variants: Sequence[Variant]) -> str:
    """A name with braces that is another one for each of these variants, which have the same ``name``."""
    settings = grid.differing_settings(variants)
    shown = [f"{setting.rpartition('.')[2]}{{{setting}}}" for setting in settings]
    return "_".join([variants[0].name or variants[0].kind, *shown])
