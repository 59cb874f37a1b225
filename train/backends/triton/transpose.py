"""Pairs in the order of their latents, by a stable sort: what every sum over the pairs of a latent walks
along.
"""

from functools import lru_cache

import torch

from ...pairs import Pairs
from ..plain.products import LatentMajor
from .exact import rows_of


def by_latent(pairs: Pairs) -> LatentMajor:
    """The pairs of each latent, rows ascending; made once for these places, without a host sync."""
    return pairs.once("triton by_latent", lambda: _by_latent(pairs))


def _by_latent(pairs: Pairs) -> LatentMajor:
    # Half as many bits to sort by: latents are far below 2³¹.
    latent, pair = torch.sort(pairs.latent.to(torch.int32), stable=True)
    latent_ptr = torch.searchsorted(latent, numbers(pairs.num_latents + 1, latent.device, torch.int32))
    return LatentMajor(latent_ptr=latent_ptr, row=rows_of(pairs).index_select(0, pair), pair=pair)


@lru_cache(maxsize=256)  # far more than the sizes of a run: the recording of a graph must find it made
def numbers(count: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0 to ``count`` - 1, made once."""
    return torch.arange(count, dtype=dtype, device=device)
