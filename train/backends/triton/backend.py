"""The CUDA backend: screened on tensor cores, decided by exact pre-activations; see the kernels beside this.

Scores that a variant makes itself (:class:`..sources.Scores`) are compared in torch operations.
"""

from torch import Tensor

from ...pairs import Pairs
from ..plain import backend as plain
from ..sources import Encoder, Source
from . import above as kernels_above
from . import largest
from . import largest_of_batch as kernels_batch
from .adam import adam_step, gradient_norm
from .decode import decode
from .exact import sddmm
from .gradients import accumulate_by_latent
from .random_numbers import random_uniform
from .sums import sum_per_latent

__all__ = [
    "above",
    "accumulate_by_latent",
    "adam_step",
    "decode",
    "gradient_norm",
    "largest_of_batch",
    "largest_per_latent",
    "largest_per_row",
    "random_uniform",
    "sddmm",
    "sum_per_latent",
]


def largest_per_row(source: Source, k: int) -> Pairs:
    """As :meth:`..protocol.Backend.largest_per_row`."""
    if not isinstance(source, Encoder):
        return plain.largest_per_row(source, k)
    return largest.largest_per_row(source.x_centered, source.W_enc, source.b_enc, k)


def largest_of_batch(source: Source, total: int, hint: Tensor | None) -> tuple[Pairs, Tensor | None]:
    """As :meth:`..protocol.Backend.largest_of_batch`; chunk maxima give a threshold, so no guess is kept."""
    if not isinstance(source, Encoder):
        return plain.largest_of_batch(source, total, hint)
    return kernels_batch.largest_of_batch(source.x_centered, source.W_enc, source.b_enc, total), None


def largest_per_latent(source: Source, counts: Tensor) -> Pairs:
    """As :meth:`..protocol.Backend.largest_per_latent`."""
    if not isinstance(source, Encoder):
        return plain.largest_per_latent(source, counts)
    return largest.largest_per_latent(source.x_centered, source.W_enc, source.b_enc, counts)


def above(source: Source, threshold: Tensor) -> Pairs:
    """As :meth:`..protocol.Backend.above`."""
    if not isinstance(source, Encoder):
        return plain.above(source, threshold)
    return kernels_above.above(source.x_centered, source.W_enc, source.b_enc, threshold)
