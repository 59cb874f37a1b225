"""SAEs of every kind in training, for checks and measurements: the same start on every device.

Legend: B rows, D model width, F latents.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UsageError
from ..common.memory import available_memory
from ..train.engine.optimizer import OptimizerConfig
from ..train.engine.trainee import Trainee
from ..train.runs.initialisation import initial_parameters
from ..train.runs.sizes import Memory
from ..train.variants import VARIANTS
from ..train.variants.base.variant import Plan, Variant

DEAD_AFTER_ROWS = 10_000_000
MEMORY_SHARE = 0.5  # of what is available, for weights, gradients and moments
NUM_STEPS = 1000  # of the run that a step is measured in: its schedules stand still
EXTRAS: dict[str, dict[str, Any]] = {  # losses that are off by default
    "mutual_choice": {"aux_zipf": {"coefficient": 0.2, "k": 3}, "nfm": {"coefficient": 0.01}},
}


def make_variant(kind: str, k: int, **settings: Any) -> Variant:
    """A variant of ``kind`` with its defaults, and ``k`` where it has one."""
    chosen = VARIANTS[kind]
    with_k = {"k": k} if "k" in chosen.model_fields else {}
    return chosen.model_validate({"kind": kind, **with_k, **settings})


def make_trainee(variant: Variant, *, rows: int, latents: int, width: int, device: torch.device) -> Trainee:
    """A trainee at its start, drawn with seed 0.

    Raises:
        UsageError: the settings are impossible at this size.
    """
    plan = Plan(d_model=width, num_latents=latents, batch_rows=rows, num_steps=NUM_STEPS)
    if problems := variant.problems(plan):
        raise UsageError("; ".join(problems))
    parameters = initial_parameters(plan, 0, torch.zeros(width, device=device))
    return Trainee(variant, plan, 0, OptimizerConfig(), parameters)


def unit_rows(batches: int, rows: int, width: int, device: torch.device) -> Tensor:
    """Batches of random rows of norm 1, [batches, B, D]; the same on every device."""
    x = torch.randn(batches, rows, width, generator=torch.Generator().manual_seed(0))
    unit: Tensor = x / x.norm(dim=2, keepdim=True)
    return unit.to(device)


def step_of(trainee: Trainee, x: Tensor, dead_after_rows: int = DEAD_AFTER_ROWS) -> Callable[[int], None]:
    """A function that takes step i of ``trainee``, on batch i of ``x`` [batches, B, D], over and over."""
    x_centered = torch.empty_like(x[0])

    def take(i: int) -> None:
        torch.sub(x[i % len(x)], trainee.parameters["b_dec"], out=x_centered)
        trainee.add_batch(x_centered, x_centered, i, dead_after_rows)
        trainee.update(1.0)

    return take


def fitting_latents(latents: int, rows: int, width: int, device: torch.device) -> int:
    """``latents``, halved until one SAE in training takes at most a half of the memory that is available."""
    available = available_memory(device)
    while available is not None and latents > 1024:
        plan = Plan(d_model=width, num_latents=latents, batch_rows=rows, num_steps=1)
        if Memory.of([plan]).total + 4 * 3 * rows * width <= MEMORY_SHARE * available:
            break
        latents //= 2
    return latents
