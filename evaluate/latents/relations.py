"""Which latents are near a latent: by the direction of their decoder rows, and by the rows they fire on.

Legend: F latents, D model width, R sampled rows of a latent, K latents kept.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...distributed.group import ALONE, Group
from ...train.variants.losses.nfm import unit_rows
from ..metrics.collapse import block_latents
from .candidates import rank_within_groups
from .codes import StoredCodes
from .table import EMPTY, NUM_RELATED

_SAMPLED_AT_ONCE = 1 << 15


def find_nearest(W_dec: Tensor, num_kept: int = NUM_RELATED, group: Group = ALONE) -> dict[str, NDArray[Any]]:
    """The other latents of the largest cosine between decoder rows, and the cosines.

    The cosines of all pairs are computed in blocks: F² D multiplications, and 64 MiB. K is at most F - 1.

    Returns:
        ``nearest`` int32 and ``nearest_cosine`` float32, [F, K] each; where several processes share the
        blocks, this one's rows of them.
    """
    num_latents = len(W_dec)
    num_kept = min(num_kept, num_latents - 1)
    unit = unit_rows(W_dec)
    blocks = torch.split(torch.arange(num_latents, device=W_dec.device), block_latents(num_latents))
    latents, cosines = [np.zeros((0, num_kept), np.int32)], [np.zeros((0, num_kept), np.float32)]
    for number in group.share(len(blocks)):
        block = blocks[number]
        cosine = unit[block] @ unit.T
        cosine[torch.arange(len(block), device=W_dec.device), block] = -torch.inf
        found = cosine.topk(num_kept, dim=1)
        latents.append(found.indices.cpu().numpy().astype(np.int32))
        cosines.append(found.values.float().cpu().numpy())
    return {"nearest": np.concatenate(latents), "nearest_cosine": np.concatenate(cosines)}


def find_coactive(
    codes: StoredCodes, sampled: NDArray[np.int32], fires: NDArray[np.int64], num_kept: int = NUM_RELATED
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The latents that fire on the rows on which a latent fires, and the share of these rows: [F, K] each.

    The share is that of the latent's sampled activations, so it is exact for a latent that fires on no more
    than R rows. The order is by the Jaccard index that follows from the share and from how often each fires
    (rows on which both fire, of those on which at least one does): dense latents would come first otherwise.

    Args:
        sampled: int32 [F, R], a uniform sample of the activations of each latent, as tokens of the text.
        fires: rows on which each latent fires, [F].

    Returns:
        Latents int32, ``EMPTY`` where there are fewer; shares float32, 0 there.
    """
    num_latents, per_latent = sampled.shape
    coactive = np.full((num_latents, num_kept), EMPTY, dtype=np.int32)
    share = np.zeros((num_latents, num_kept), dtype=np.float32)
    row_L = codes.row_of_offset()
    step = max(1, _SAMPLED_AT_ONCE // per_latent)
    for start in range(0, num_latents, step):
        own, place = np.nonzero(sampled[start : start + step] != EMPTY)
        row = row_L[sampled[start : start + step][own, place]]
        count = codes.row_ptr[row + 1] - codes.row_ptr[row]
        first = np.repeat(codes.row_ptr[row] - np.r_[0, np.cumsum(count)[:-1]][: len(row)], count)
        other = codes.latent[first + np.arange(len(first))].astype(np.int64) if len(first) else first
        key, together = np.unique(np.repeat(own, count) * num_latents + other, return_counts=True)
        latent, other = np.divmod(key, num_latents)
        latent, other, together = (v[other != latent + start] for v in (latent, other, together))
        of_latent = together / np.bincount(own, minlength=step)[latent]
        both = of_latent * fires[latent + start]
        jaccard = both / (fires[latent + start] + fires[other] - both).clip(min=1e-9)
        order = np.lexsort((other, -jaccard, latent))
        rank = rank_within_groups(latent[order])
        kept = rank < num_kept
        coactive[latent[order][kept] + start, rank[kept]] = other[order][kept]
        share[latent[order][kept] + start, rank[kept]] = of_latent[order][kept]
    return coactive, share
