"""How the processes of a run share its work: which latents and which variants each of them trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from ...common.errors import UsageError
from ...common.frozen import FrozenModel
from ...distributed.group import ALONE, Group
from ...distributed.launch import World
from ..latent_shards import num_units


class ParallelConfig(FrozenModel):
    """How the processes that torchrun or srun starts share a run. No result depends on it."""

    latents: Literal["auto"] | PositiveInt = "auto"  # processes per SAE; auto: all / variants
    variants: PositiveInt = 1  # groups of processes, each of which trains some of the SAEs


@dataclass(frozen=True)
class Layout:
    """The place of this process among those of a run.

    Attributes:
        everyone: all processes.
        group: those that train the same variants as this one, and share their latents.
        first_variant, variant_groups: this process trains every ``variant_groups``-th variant from this one.
    """

    everyone: Group = ALONE
    group: Group = ALONE
    first_variant: int = 0
    variant_groups: int = 1

    @property
    def own(self) -> slice:
        """The variants that this process trains."""
        return slice(self.first_variant, None, self.variant_groups)

    def __str__(self) -> str:
        latents = f"{self.group.size} processes share the latents of an SAE"
        if self.variant_groups == 1:
            return latents
        return f"{self.variant_groups} groups of processes share the SAEs; in each {latents}"


def choose_layout(config: ParallelConfig, num_variants: int, world: World) -> Layout:
    """Divide the processes of ``world``; with one process there is nothing to divide.

    Raises:
        UsageError: the config asks for another number of processes.
    """
    groups = min(config.variants, world.size)
    per_group = world.size // groups if config.latents == "auto" else config.latents
    if world.size > 1 and per_group * groups != world.size:
        raise UsageError(
            f"parallel.latents={config.latents} and parallel.variants={config.variants} need "
            f"{per_group * config.variants} processes, and there are {world.size}: start as many, or set "
            "parallel.latents to auto and parallel.variants to a divisor of their number"
        )
    if groups > num_variants:
        raise UsageError(
            f"parallel.variants={config.variants} is more than the {num_variants} SAEs of the run: lower it"
        )
    if groups == 1:
        return Layout(world.everyone, world.everyone)
    ranks = [range(first, first + per_group) for first in range(0, world.size, per_group)]
    group = world.split(ranks)
    return Layout(world.everyone, group, world.rank // per_group, groups)


def layout_problems(layout: Layout, num_latents: Sequence[int]) -> list[str]:
    """The reasons why the processes cannot share SAEs of ``num_latents``."""
    fewest = min(num_latents)
    if layout.group.size <= num_units(fewest):
        return []
    return [
        f"{layout.group.size} processes cannot share an SAE of {fewest} latents, which come in "
        f"{num_units(fewest)} parts: start fewer processes, or set parallel.variants"
    ]
