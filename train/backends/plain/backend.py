"""The plain backend: torch operations; exact pre-activations decide all selections."""

from functools import partial

from torch import Tensor

from ...pairs import Pairs
from .. import composed, gates, guessing
from ..sources import Source
from .adam import adam_step as adam_step
from .adam import row_squares
from .products import accumulate_by_latent, decode, sddmm, sum_per_latent
from .products import add_decoded as add_decoded
from .random_numbers import random_uniform as random_uniform
from .selection import collect, kth_largest, mask_of_largest
from .selection import largest_per_latent as largest_per_latent
from .selection import largest_per_row as largest_per_row

nests = False
search_rows = None
clip = composed.clip
count_active = composed.count_active
gradient_norm = partial(composed.gradient_norm, row_squares)
global_norm = partial(composed.global_norm, gradient_norm)
rank_gates = partial(gates.rank_gates, random_uniform)
reconstruct = partial(composed.reconstruct, decode, sddmm)
reconstruct_nested = partial(composed.reconstruct_nested, decode, sddmm)
sum_rows = composed.sum_rows
weight_gradients = partial(composed.weight_gradients, accumulate_by_latent, sum_per_latent)


def above(source: Source, threshold: Tensor) -> Pairs:
    """See :meth:`..protocol.Backend.above`."""
    return collect(source, threshold, strict=True)


def _reaching(source: Source, threshold: float, total: int) -> Pairs:
    return collect(source, threshold, strict=False, most=total)


largest_of_batch = partial(
    guessing.largest_of_batch,
    guessing.Collector(reaching=_reaching, kth_largest=kth_largest, mask_of_largest=mask_of_largest),
)
