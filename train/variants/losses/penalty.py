"""Penalties that keep codes few. L1 is a price on the sum of a row's codes: Bricken et al. 2023; with decoder
norms Conerly et al. 2024.
"""

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from ....common.frozen import FrozenModel
from ...backends.plain.products import total
from ...engine.schedule import in_steps
from ...pairs import Pairs
from ..base.rows import Batch


class Penalty(FrozenModel):
    """A coefficient that grows linearly from 0 over ``warmup``: first find directions, then have a price."""

    coefficient: PositiveFloat
    warmup: NonNegativeFloat = 0.05  # below 1 a fraction of the run, else steps

    def problems(self, num_steps: int) -> list[str]:
        """What is impossible about these settings in a run of ``num_steps``."""
        if in_steps(self.warmup, num_steps) > num_steps:
            return [f"the penalty's warmup={self.warmup:g} is longer than the {num_steps} steps: lower it"]
        return []

    def weight(self, batch: Batch) -> float:
        """What one unit of the penalty on one row adds to the loss now: the step's coefficient, over R."""
        steps = in_steps(self.warmup, batch.num_steps)
        factor = min(1.0, (batch.step + 1) / steps) if steps else 1.0
        return self.coefficient * factor / batch.step_rows


class L1(Penalty):
    """coefficient / R * sum over rows and latents of the code (which is never negative)."""

    def __call__(self, part: Batch, codes: Pairs, norms: Tensor | None = None) -> Tensor:
        """Add the term for the codes of ``part``.

        Args:
            codes: [B, F], values above 0 only.
            norms: of the decoder's rows, [F]: each code is multiplied by its latent's. None multiplies by
                nothing. What the norms themselves get of the gradient is left to the caller.

        Returns:
            d term / d code, [P].
        """
        weight = self.weight(part)
        d_value = (
            codes.value.new_full((len(codes),), weight) if norms is None else norms[codes.latent] * weight
        )
        part.outcome.add_loss("l1", total((codes.value * d_value).double()))
        return d_value
