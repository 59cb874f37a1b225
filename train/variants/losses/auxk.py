"""AuxK: dead latents learn to reconstruct what the others leave over. Gao et al. 2024, appendix A.2."""

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...backends.sources import block_bytes
from ..base.gradients import backpropagate, reconstruct
from ..base.rows import Batch

PAIRS_PER_BYTE = 1 / 128  # of a block, at a time, as k is ten times that of the codes: 2**18 on a CPU


class AuxK(FrozenModel):
    """L_aux = coefficient / R * sum over rows |e - ê|², with e = x - reconstruction held fixed.

    ê decodes, without bias, the top ``k`` dead latents of each row after ReLU. The gradient reaches W_dec and
    the encoder.
    """

    coefficient: PositiveFloat = 1 / 32
    k: PositiveInt | None = None  # null: the power of two nearest below half the width of the activations

    def __call__(self, part: Batch, error: Tensor) -> None:
        """Add the term for the rows of ``part``, whose main reconstruction has ``error`` [B, D]."""
        dead = part.dead_latents()
        reconstruct_leftover(part, error, dead, k=self.k, coefficient=self.coefficient, name="auxk")


def reconstruct_leftover(
    part: Batch, error: Tensor, latents: Tensor, *, k: int | None, coefficient: float, name: str
) -> None:
    """Add coefficient / R * sum over rows |e - ê|²; ê decodes the row's top ``k`` of ``latents`` after ReLU.

    Args:
        error: the error of the main reconstruction, -e [B, D].
        latents: int64 [n], ascending, those of this process; none in any process adds no loss.
    """
    number = part.shards.add_up(latents.numel())
    if number == 0:
        return
    k = min(k or default_k(error.shape[1]), number)
    pre = part.pre_activations(latents)
    some_pairs = int(PAIRS_PER_BYTE * block_bytes(error.device))
    for rows, some in part.split(max(some_pairs // k, 64)):
        chosen = pre.of_rows(rows).largest_per_row(k)
        codes = chosen.keep(chosen.value > 0)
        found = reconstruct(some, codes, -error[rows], weight=coefficient, name=name)
        backpropagate(some, codes, found.d_value, found)


def default_k(d_model: int) -> int:
    """The largest power of two that is at most half of ``d_model``: 256 for 768."""
    return 1 << max((d_model // 2).bit_length() - 1, 0)
