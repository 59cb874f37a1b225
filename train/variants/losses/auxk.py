"""AuxK: dead latents learn to reconstruct what the others leave over. Gao et al. 2024, appendix A.2."""

from functools import partial

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...backends.sources import block_bytes
from ..base.gradients import AuxiliaryLoss, backpropagate, reconstruct
from ..base.rows import Batch

MULTIPLE = 2  # of the codes of a row, where more latents are dead than Gao et al. would train at a time
PAIRS_PER_BYTE = 1 / 128  # of a block, at a time, as k is ten times that of the codes: 2**18 on a CPU


class AuxK(FrozenModel):
    """L_aux = coefficient / R * sum over rows |e - ê|², with e = x - reconstruction held fixed.

    ê decodes, without bias, the top ``k`` dead latents of each row after ReLU. The gradient reaches W_dec and
    the encoder. By default (:func:`choose_k`) ``k`` is Gao et al.'s until more latents than that are dead.
    """

    coefficient: PositiveFloat = 1 / 32
    k: PositiveInt | None = None  # null: see choose_k

    def add(self, part: Batch, error: Tensor, *, codes_per_row: int) -> None:
        """Add the term for the rows of ``part``, whose main reconstruction has ``error`` [B, D]."""
        k, dead = (self.k, codes_per_row), part.dead_latents()
        reconstruct_leftover(part, error, dead, k=k, coefficient=self.coefficient, name="auxk")


def auxk_terms(auxk: AuxK | None, codes_per_row: int) -> list[AuxiliaryLoss]:
    """The loss, if configured, as a function of a part of the rows, whose rule keeps so many codes a row."""
    return [] if auxk is None else [partial(auxk.add, codes_per_row=codes_per_row)]


def reconstruct_leftover(
    part: Batch, error: Tensor, latents: Tensor, *, k: tuple[int | None, int], coefficient: float, name: str
) -> None:
    """Add coefficient / R * sum over rows |e - ê|²; ê decodes the row's top k of ``latents`` after ReLU.

    Args:
        error: the error of the main reconstruction, -e [B, D].
        latents: int64 [n], ascending, those of this process; none in any process adds no loss.
        k: the setting, None for :func:`choose_k`; and the codes of a row in the main reconstruction.
    """
    number = part.shards.add_up(latents.numel())
    if number == 0:
        return
    k_latents = min(k[0] or choose_k(error.shape[1], number, k[1]), number)
    pre = part.pre_activations(latents)
    some_pairs = int(PAIRS_PER_BYTE * block_bytes(error.device))
    for rows, some in part.split(max(some_pairs // k_latents, 64)):
        chosen = pre.of_rows(rows).largest_per_row(k_latents)
        codes = chosen.positive()
        found = reconstruct(some, codes, -error[rows], weight=coefficient, name=name)
        backpropagate(some, codes, found.d_value, found)


def choose_k(d_model: int, num_latents: int, codes_per_row: int) -> int:
    """The default number of auxiliary latents of a row: :func:`default_k` until there are more to train.

    Where there are more, each would learn a share of what hundreds of others learn at the same time, and most
    stay dead. Then it is :data:`MULTIPLE` times ``codes_per_row``, so that they specialize as latents do (the
    sweep is in docs/papers.md).

    Args:
        num_latents: the dead or dying latents, of all processes.
        codes_per_row: number of active latents of a row in the main reconstruction.
    """
    usual = default_k(d_model)
    return usual if num_latents <= usual else min(usual, MULTIPLE * codes_per_row)


def default_k(d_model: int) -> int:
    """The largest power of two that is at most half of ``d_model``: 256 for 768."""
    return 1 << max((d_model // 2).bit_length() - 1, 0)
