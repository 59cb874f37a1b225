"""The compiled backend: float32 in main memory; exact pre-activations decide all selections."""

from functools import partial

import torch
from torch import Tensor

from ...pairs import Pairs
from .. import composed, gates, guessing
from ..sources import Source
from .adam import adam_step as adam_step
from .adam import row_squares
from .bits import kth_largest, mask_of_largest
from .pair_products import accumulate_by_latent, decode, sddmm, sum_per_latent
from .pair_products import add_decoded as add_decoded
from .random_numbers import random_uniform as random_uniform
from .selection.collect import collect
from .selection.per_latent import largest_per_latent as largest_per_latent
from .selection.per_row import largest_per_row as largest_per_row
from .selection.row_search import search_rows as search_rows

nests = False
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
    everywhere = torch.full((source.num_latents,), threshold)
    per_row = 2 * total / max(1, source.num_rows)
    return collect(source, everywhere, strict=False, most=total, expected_per_row=per_row)


largest_of_batch = partial(
    guessing.largest_of_batch,
    guessing.Collector(reaching=_reaching, kth_largest=kth_largest, mask_of_largest=mask_of_largest),
)
