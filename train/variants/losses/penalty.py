"""Penalties that make codes sparse. L1 penalizes the sum of a row's codes: Bricken et al. 2023; with decoder
norms Conerly et al. 2024.
"""

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from ....common.frozen import FrozenModel
from ...engine.schedule import in_steps
from ...pairs import Pairs
from ..base.rows import Batch


class Penalty(FrozenModel):
    """A coefficient that grows linearly from 0 during ``warmup``, so that directions are found first."""

    coefficient: PositiveFloat
    warmup: NonNegativeFloat = 0.05  # below 1 a fraction of the run, else steps

    def problems(self, num_steps: int) -> list[str]:
        """The reasons why these settings are impossible in a run of ``num_steps``, and how to fix them."""
        if in_steps(self.warmup, num_steps) > num_steps:
            return [f"the penalty's warmup={self.warmup:g} is longer than the {num_steps} steps: lower it"]
        return []

    def weight(self, batch: Batch) -> float:
        """The loss per unit of penalty of a row: the coefficient in this step, divided by R."""
        steps = in_steps(self.warmup, batch.num_steps)
        factor = min(1.0, (batch.step + 1) / steps) if steps else 1.0
        return self.coefficient * factor / batch.step_rows


class L1(Penalty):
    """coefficient / R * sum over rows and latents of the codes, which are never negative."""

    def __call__(self, part: Batch, codes: Pairs, norms: Tensor | None = None) -> Tensor:
        """Add the term for the codes of ``part``.

        Args:
            codes: [B, F], values above 0 only.
            norms: norms of the decoder's rows, [F], by which the codes are multiplied; None multiplies by 1.
                The gradient by the norms themselves is left to the caller.

        Returns:
            d term / d code, [P].
        """
        weight = self.weight(part)
        d_value = (
            codes.value.new_full((len(codes),), weight) if norms is None else norms[codes.latent] * weight
        )
        part.outcome.add_loss("l1", part.shards.sum_of_pairs(codes, codes.value * d_value))
        return d_value
