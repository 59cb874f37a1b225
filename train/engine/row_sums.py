"""Where processes share the rows of a batch: what they add up after a step, before one of them updates.

Each process has the gradients of its rows for all latents that it holds. The owner of a latent, one of the
processes that hold it, adds them up in the order of the rows, updates, and gives the new weights back. So the
bits of a step depend on the number of processes that share the rows, and on nothing else.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..latent_shards import WITHOUT_LATENTS, sum_in_order
from ..variants.base.rows import Batch
from ..variants.base.variant import Plan


class Owners:
    """The latents that this process updates, among those that it holds."""

    def __init__(self, plan: Plan) -> None:
        self.latents = plan.owners
        self.group = plan.row_group
        self._held = plan.shards.divided(self.latents, self.group)

    def part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows of the latents that this process updates, as views; tensors without latents are whole."""
        return {name: self._held.part(t) if has_latents(name, t) else t for name, t in tensors.items()}

    def sum_over_rows(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Batch:
        """The batch of a step as if this process had all rows, and no latents but those that it updates.

        The statistics in ``batch.outcome`` become those of all rows too. ``parameters`` are :meth:`part`.
        """
        if self.group.size == 1:
            return batch
        outcome = batch.outcome
        names = sorted(outcome.losses)  # each process may have come to them in another order
        figures = torch.stack([*(outcome.losses[name] for name in names), outcome.squared_error])
        *losses, outcome.squared_error = sum_in_order(self.group.gather(figures)).unbind()
        summed = dict(zip(names, losses, strict=True))
        outcome.losses = {name: summed[name] for name in outcome.losses}
        outcome.firing = self.group.sum(outcome.firing)
        outcome.row_l0 = self.group.gather_rows(torch.cat(outcome.row_l0))
        outcome.through_encoder = self._held.scatter_sum(outcome.through_encoder)
        gradients = {
            name: self._held.scatter_sum(g) if has_latents(name, g) else sum_in_order(self.group.gather(g))
            for name, g in batch.gradients.items()
        }
        return replace(batch, parameters=parameters, gradients=gradients, latent_shards=self.latents)

    def give_back(self, parameters: Mapping[str, Tensor], updated: Mapping[str, Tensor]) -> None:
        """Overwrite ``parameters`` of all latents held with those that their owners have ``updated``."""
        if self.group.size == 1:
            return
        for name, part in updated.items():
            if has_latents(name, part):
                parameters[name].copy_(self._held.gather(part))


def has_latents(name: str, tensor: Tensor) -> bool:
    """Whether a parameter or a running value has a row for each latent."""
    return tensor.dim() > 0 and name not in WITHOUT_LATENTS
