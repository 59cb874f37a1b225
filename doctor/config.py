"""The settings of ``saecache doctor``: how much is measured, and for how long. Recipes have the values."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from ..common.counts import PositiveCount
from ..common.frozen import FrozenModel


class Checks(FrozenModel):
    """The fixed problems that are checked. They are small, whatever the device."""

    operations: Annotated[
        tuple[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt], ...], Field(min_length=1)
    ]
    """(B, F, D, k) of each problem of an operation; F is above 5, and k at most F."""
    screen_widths: tuple[PositiveInt, ...]
    """D of the rows on which screens must keep their bounds."""
    training: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(B, F, D) of the training runs that are compared."""
    encoded_widths: tuple[PositiveInt, ...]
    """D of the rows that a GPU encodes for a harvest."""


class Sizes(FrozenModel):
    """What is measured on one kind of device. Latents are halved until a step fits the memory."""

    latents: Annotated[tuple[PositiveCount, ...], Field(min_length=1)]
    """F of the SAEs whose steps are measured, one after the other."""
    rows: PositiveCount
    """B, the rows of a batch."""
    width: PositiveCount
    """D, the width of a row, of steps and of the temporary cache."""
    k: PositiveInt
    """Active latents per row."""
    rounds: PositiveInt
    """Rounds of every measurement, fewer where the time runs out."""
    cache_mib: PositiveInt
    """Size of the rows of the temporary cache, which is written and read."""
    tokens: PositiveCount
    """Tokens of the harvest."""
    model: Annotated[str, Field(pattern="^(builtin:demo|gpt2-sized)$")]
    """The embedded model, or one of GPT-2 small's size with random weights."""


class Seconds(FrozenModel):
    """How long each section may take. No item begins after that; one that has begun is finished."""

    machine: PositiveFloat
    devices: PositiveFloat
    storage: PositiveFloat
    operations: PositiveFloat
    kernels: PositiveFloat
    training: PositiveFloat
    moves: PositiveFloat
    steps: PositiveFloat
    peers: PositiveFloat
    feed: PositiveFloat
    writer: PositiveFloat
    harvest: PositiveFloat
    kernel_times: PositiveFloat


class DoctorConfig(FrozenModel):
    """One examination of a machine."""

    limit_seconds: PositiveFloat
    """The whole examination. A section that has no time left is skipped."""
    seconds: Seconds
    checks: Checks
    cpu: Sizes
    gpu: Sizes
    device: str = "auto"
    """What is checked and measured: cpu, cuda, cuda:1, or auto (a GPU where there is one)."""
    folder: str = "."
    """Where the temporary files go: best on the disk that will hold the caches."""
