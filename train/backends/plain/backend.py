"""The plain backend: torch operations; exact pre-activations decide all selections."""

from functools import partial

from torch import Tensor

from ...pairs import Pairs
from .. import guessing
from ..sources import Source
from .adam import adam_step as adam_step
from .adam import gradient_norm as gradient_norm
from .products import accumulate_by_latent as accumulate_by_latent
from .products import decode as decode
from .products import sddmm as sddmm
from .products import sum_per_latent as sum_per_latent
from .random_numbers import random_uniform as random_uniform
from .selection import collect, kth_largest, mask_of_largest
from .selection import largest_per_latent as largest_per_latent
from .selection import largest_per_row as largest_per_row


def above(source: Source, threshold: Tensor) -> Pairs:
    """See :meth:`..protocol.Backend.above`."""
    return collect(source, threshold, strict=True)


def _reaching(source: Source, threshold: float, total: int) -> Pairs:
    return collect(source, threshold, strict=False, most=total)


largest_of_batch = partial(
    guessing.largest_of_batch,
    guessing.Collector(reaching=_reaching, kth_largest=kth_largest, mask_of_largest=mask_of_largest),
)
