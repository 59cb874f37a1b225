"""Pairs in the order of their latents: what every sum over the pairs of a latent walks along.

Legend: B rows, F latents, P pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pairs import Pairs
from .compile import compiled
from .dispatch import use_compiled


@dataclass(frozen=True, kw_only=True)
class LatentMajor:
    """The places of pairs [B, F], by latents, and by ascending rows within a latent.

    Attributes:
        latent_ptr: int64 [F + 1]; the pairs of latent ``i`` are ``latent_ptr[i]:latent_ptr[i + 1]``.
        row: int64 [P], of each of them.
        pair: int64 [P], which pair of the row order it is: ``values[pair]`` puts values [P] into this order.
    """

    latent_ptr: Tensor
    row: Tensor
    pair: Tensor


def by_latent(pairs: Pairs) -> LatentMajor:
    """Transpose the places of ``pairs`` (a counting sort on the CPU), once."""
    return pairs.once("by_latent", lambda: _by_latent(pairs))


def _by_latent(pairs: Pairs) -> LatentMajor:
    if not use_compiled() or pairs.latent.device.type != "cpu":
        return _by_latent_torch(pairs)
    latent_ptr = pairs.latent.new_zeros(pairs.num_latents + 1)
    row, pair = torch.empty_like(pairs.latent), torch.empty_like(pairs.latent)
    tensors = (pairs.row_ptr, pairs.latent, latent_ptr, row, pair)
    _counting_sort(*[t.numpy() for t in tensors])
    return LatentMajor(latent_ptr=latent_ptr, row=row, pair=pair)


def _by_latent_torch(pairs: Pairs) -> LatentMajor:
    pair = pairs.latent.argsort(stable=True)
    latent_ptr = torch.zeros(pairs.num_latents + 1, dtype=torch.int64, device=pair.device)
    torch.cumsum(pairs.count_per_latent(), 0, out=latent_ptr[1:])
    return LatentMajor(latent_ptr=latent_ptr, row=pairs.rows()[pair], pair=pair)


@compiled
def _counting_sort(row_ptr: Any, latent: Any, latent_ptr: Any, row: Any, pair: Any) -> None:
    """``latent_ptr`` comes as zeros. Its entry i first counts latent i, then is where latent i's next pair
    goes.
    """
    num_latents = latent_ptr.shape[0] - 1
    for p in range(latent.shape[0]):
        latent_ptr[latent[p]] += 1
    before = 0
    for i in range(num_latents + 1):
        count = latent_ptr[i]
        latent_ptr[i] = before
        before += count
    for r in range(row_ptr.shape[0] - 1):
        for p in range(row_ptr[r], row_ptr[r + 1]):
            place = latent_ptr[latent[p]]
            row[place] = r
            pair[place] = p
            latent_ptr[latent[p]] = place + 1
    for i in range(num_latents, 0, -1):
        latent_ptr[i] = latent_ptr[i - 1]
    latent_ptr[0] = 0
