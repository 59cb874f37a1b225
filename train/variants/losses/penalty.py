"""What penalties of sparsity share."""

from pydantic import NonNegativeFloat, PositiveFloat

from ....common.frozen import FrozenModel
from ...engine.schedule import in_steps
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
