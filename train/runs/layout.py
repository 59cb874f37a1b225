"""How the processes of a run share its work: which latents, rows and variants each of them trains.

Those that train an SAE are a grid of row groups x latent groups. Processes with neighbouring numbers, which
are on one machine, share latents: they exchange in every part of a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from ...common.counts import format_bytes
from ...common.errors import UsageError
from ...common.frozen import FrozenModel
from ...distributed.group import ALONE, Group
from ...distributed.launch import World
from ..latent_shards import num_units
from ..variants.base.variant import Plan

CODES = 32  # active latents of a row, for the choice of rows: auto


class ParallelConfig(FrozenModel):
    """How the processes that torchrun or srun starts share a run. Only ``rows`` changes its last bits."""

    latents: Literal["auto"] | PositiveInt = "auto"  # processes that share an SAE's latents; auto: the rest
    variants: PositiveInt = 1  # groups of processes, each of which trains some of the SAEs
    rows: Literal["auto"] | PositiveInt = 1  # processes that share the rows of a batch; auto: least traffic


@dataclass(frozen=True)
class Layout:
    """The place of this process among those of a run.

    Attributes:
        everyone: all processes.
        group: those that share the latents of the same SAEs as this one, for the same rows.
        row_group: those that share the rows of a batch, for the same latents as this one.
        grid: all that train the same SAEs, by their latents and then by their rows.
        reason: why the processes were divided so.
        first_variant, variant_groups: this process trains every ``variant_groups``-th variant from this one.
    """

    everyone: Group = ALONE
    group: Group = ALONE
    row_group: Group = ALONE
    grid: Group = ALONE
    reason: str = ""
    first_variant: int = 0
    variant_groups: int = 1

    @property
    def own(self) -> slice:
        """The variants that this process trains."""
        return slice(self.first_variant, None, self.variant_groups)

    def __str__(self) -> str:
        latents = f"{self.group.size} processes share the latents of an SAE"
        if self.row_group.size > 1:
            latents = f"{self.row_group.size} groups share the rows of a batch; in each {latents}"
        if self.variant_groups > 1:
            latents = f"{self.variant_groups} groups of processes share the SAEs; in each {latents}"
        return latents + (f" ({self.reason})" if self.reason else "")


def choose_layout(
    config: ParallelConfig, num_variants: int, world: World, plans: Callable[[], Sequence[Plan]]
) -> Layout:
    """Divide the processes of ``world``; with one process there is nothing to divide.

    ``plans`` returns the sizes of the SAEs, by which ``rows: auto`` is chosen.

    Raises:
        UsageError: the config asks for another number of processes.
    """
    groups = min(config.variants, world.size)
    latents, rows, reason = _divide(config, world.size // groups, plans)
    size = latents * rows
    if (world.size > 1 or rows > 1) and size * groups != world.size:
        raise UsageError(
            f"parallel.latents={config.latents}, parallel.rows={config.rows} and parallel.variants="
            f"{config.variants} need {size * config.variants} processes, and there are {world.size}: start "
            "as many, or set parallel.latents to auto, and parallel.rows and parallel.variants to divisors "
            "of their number"
        )
    if groups > num_variants:
        raise UsageError(
            f"parallel.variants={config.variants} is more than the {num_variants} SAEs of the run: lower it"
        )
    if world.size == 1:
        return Layout(reason=reason)
    if groups == rows == 1:
        return Layout(world.everyone, world.everyone, grid=world.everyone, reason=reason)
    grids = [range(start, start + size) for start in range(0, world.size, size)]
    group = world.split([grid[i : i + latents] for grid in grids for i in range(0, size, latents)])
    row_group, everyone_of_sae = ALONE, group
    if rows > 1:
        columns = [[grid[i::latents] for i in range(latents)] for grid in grids]
        row_group = world.split([column for several in columns for column in several])
        everyone_of_sae = world.split(
            [[rank for column in several for rank in column] for several in columns]
        )
    return Layout(world.everyone, group, row_group, everyone_of_sae, reason, world.rank // size, groups)


def _divide(
    config: ParallelConfig, processes: int, plans: Callable[[], Sequence[Plan]]
) -> tuple[int, int, str]:
    """How many of the ``processes`` of an SAE share its latents, how many the rows; and why, if chosen."""
    if config.rows == "auto" and config.latents == "auto":
        rows, reason = choose_rows(plans(), processes)
        return processes // rows, rows, reason
    if config.latents == "auto":
        assert config.rows != "auto", "the case above"
        return max(1, processes // config.rows), config.rows, ""
    rows = max(1, processes // config.latents) if config.rows == "auto" else config.rows
    return config.latents, rows, ""


def choose_rows(plans: Sequence[Plan], processes: int) -> tuple[int, str]:
    """How many of the ``processes`` of an SAE share rows so that they send least, and the reason in words."""

    def traffic(rows: int) -> float:
        return sum(step_traffic(plan, processes // rows, rows) for plan in plans)

    fewest = min(plan.batch_rows for plan in plans)
    possible = [rows for rows in range(1, processes + 1) if processes % rows == 0 and rows <= fewest]
    best = min(possible, key=traffic)
    each = ", ".join(f"rows={rows}: {format_bytes(round(traffic(rows)))}" for rows in possible)
    return best, f"parallel.rows={best} sends least; a process sends, in a step, about {each}"


def step_traffic(plan: Plan, latents: int, rows: int) -> float:
    """Bytes that a process sends in a step of TopK, about, of ``latents`` x ``rows`` processes.

    With B rows of its own and F latents: for the latents 2 x 4 B O of the running sum, and the candidates of
    the selection; for the rows the gradients and the weights, 2 x 4 F (D + O) (rows - 1) / rows.
    """
    own_rows, own_latents = plan.step_rows / rows, plan.num_latents / latents
    of_latents = own_rows * (8 * plan.d_decoded + 4 * CODES * (latents - 1)) if latents > 1 else 0.0
    return of_latents + 8 * own_latents * (plan.d_encoder + plan.d_decoded) * (rows - 1) / rows


def layout_problems(layout: Layout, plans: Sequence[Plan]) -> list[str]:
    """The reasons why the processes cannot share SAEs of these sizes."""
    problems = []
    fewest = min(plan.num_latents for plan in plans)
    if layout.grid.size > num_units(fewest):
        problems.append(
            f"{layout.grid.size} processes cannot share an SAE of {fewest} latents, which come in "
            f"{num_units(fewest)} parts: start fewer processes, or set parallel.variants"
        )
    rows = layout.row_group.size
    if rows > (batch_rows := min(plan.batch_rows for plan in plans)):
        problems.append(
            f"parallel.rows={rows} is more than the batch_rows={batch_rows}: lower it, or raise batch_rows"
        )
    return problems
