"""The memory and the room on a disk that a run takes, known before its first step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ...common.counts import format_bytes
from ...common.errors import UsageError
from ...common.memory import check_memory
from ..engine.reading import Source
from ..variants.base.variant import Plan
from .config import CheckpointConfig


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The bytes that the tensors of all variants take as long as they train, float32."""

    weights: int
    gradients: int
    moments: int  # two for each weight
    batches: int = 0  # the rows of all hooks of a run with several: one batch in use, one being read

    @classmethod
    def of(cls, plans: Sequence[Plan], sources: Sequence[Source] = ()) -> "Memory":
        """The matrices and biases of all SAEs; a kind's own tensors of [F] are not counted."""
        weights = sum(4 * _num_weights(plan, plan.shards.count) for plan in plans)
        updated = sum(4 * _num_weights(plan, plan.owners.count) for plan in plans)
        batches = 0
        if len(sources) > 1:
            own = plans[0].own_rows
            batches = 2 * 4 * (own.stop - own.start) * sum(source.width for source in sources)
        return cls(weights=weights, gradients=weights, moments=2 * updated, batches=batches)

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.batches

    def __str__(self) -> str:
        batches = f", batches of several hooks {format_bytes(self.batches)}" if self.batches else ""
        return (
            f"weights {format_bytes(self.weights)}, gradients {format_bytes(self.gradients)}, moments "
            f"{format_bytes(self.moments)}{batches}"
        )


def memory_problems(memory: Memory, plans: Sequence[Plan], device: torch.device) -> list[str]:
    """The reasons why the tensors of the run do not fit into the memory that is available now.

    Initial weights are drawn on the CPU, two matrices of one variant at a time, whatever the device.
    """
    largest = max(plans, key=lambda plan: plan.num_latents)
    shape = f"{largest.num_latents:,} latents of width {largest.d_model}"
    what = f"training {f'{len(plans)} variants of up to ' if len(plans) > 1 else ''}{shape} ({memory})"
    fix = f"lower num_latents or expansion_factor{', or train fewer variants at a time' * (len(plans) > 1)}"
    needs = [(memory.total, device, what)]
    if device.type != "cpu":
        drawn = 4 * largest.shards.count * (largest.d_encoder + largest.d_decoded)
        needs.append((drawn, torch.device("cpu"), f"drawing the initial weights of {shape}"))
    problems = []
    for needed_bytes, place, who in needs:
        try:
            check_memory(needed_bytes, place, who, fix)
        except UsageError as error:
            problems.append(str(error))
    return problems


def most_bytes_on_disk(plans: Iterable[Plan], checkpoint: CheckpointConfig, num_steps: int) -> int:
    """The bytes that the checkpoints and the finished SAEs of a run take at most.

    A checkpoint has the weights of an SAE, and two moments for each. All SAEs have a new one before older
    ones are removed, and the finished SAEs come beside those that are kept.

    Args:
        plans: of all SAEs, those of other processes too. Their own tensors of [F] are not counted.
    """
    weights = sum(4 * _num_weights(plan, plan.num_latents) for plan in plans)
    saved = -(-num_steps // checkpoint.every_steps)
    return weights * max(3 * min(saved, checkpoint.keep + 1), 3 * min(saved, checkpoint.keep) + 1)


def _num_weights(plan: Plan, latents: int) -> int:
    """W_enc [F, D], W_dec [F, O], b_enc [F], b_dec [O]; b_in [D] and W_skip [O, D] of a transcoder.

    Of the first three, the rows of so many ``latents``. A cross-layer transcoder has W_enc [F, D / L].
    """
    encoded, decoded = plan.d_model, plan.d_decoded
    transcoder = 0 if plan.d_target is None else encoded + encoded * decoded * plan.skip
    return latents * (plan.d_encoder + decoded + 1) + decoded + transcoder
