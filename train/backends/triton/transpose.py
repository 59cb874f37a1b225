"""Pairs in the order of their latents, by a stable sort: what every sum over the pairs of a latent walks
along.

A latent that many rows choose would keep one program busy long after the others are done. The pairs of a
latent are therefore cut into segments of SEGMENT pairs, which programs of their own add up. Where a cut falls
depends on the latent's pairs only, unless there are so many pairs that the sums of segments would need too
much memory.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from ..plain.products import LatentMajor
from .exact import rows_of
from .launch import blocks, kernel, launch, padded

SEGMENT = 64
MOST_SEGMENTS = 1 << 14  # whose sums are in memory; above it the segments grow
BLOCK = 1024  # latents, and pairs, of a program


@dataclass(frozen=True, kw_only=True)
class Segmented(LatentMajor):
    """Pairs in the order of their latents, those of long latents cut into segments.

    Attributes:
        segment: the pairs of a segment.
        counts: int64 [F + 1], how many segments each latent has, none if one would do; a zero comes before.
    """

    segment: int
    counts: Tensor

    @property
    def most_segments(self) -> int:
        """There are no more; a latent with more than one has fewer than twice its pairs / ``segment``."""
        return 2 * self.pair.numel() // self.segment

    @cached_property
    def segment_ptr(self) -> Tensor:
        """int64 [F + 1]; the segments of latent ``i`` are ``segment_ptr[i]:segment_ptr[i + 1]``."""
        return self.counts.cumsum(0)


@kernel
def _places_kernel(
    latent, pair, row, out_row, latent_ptr, counts, P, F, segment,
    STEPS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """From sorted latents and the pair that each comes from: rows, where latents begin, and their segments.

    A latent ``f`` begins at the first place whose latent is not below it, found in STEPS halvings.
    """
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    p = tl.load(pair + i, mask=i < P, other=0)
    tl.store(out_row + i, tl.load(row + p, mask=i < P, other=0), mask=i < P)
    first, stop = i * 0, i * 0 + P
    next_first, next_stop = first, stop
    for _ in range(STEPS):
        middle, next_middle = (first + stop) // 2, (next_first + next_stop) // 2
        inner, next_inner = first < stop, next_first < next_stop
        below = tl.load(latent + middle, mask=inner, other=0) < i
        next_below = tl.load(latent + next_middle, mask=next_inner, other=0) <= i
        first = tl.where(inner & below, middle + 1, first)
        stop = tl.where(inner & ~below, middle, stop)
        next_first = tl.where(next_inner & next_below, next_middle + 1, next_first)
        next_stop = tl.where(next_inner & ~next_below, next_middle, next_stop)
    tl.store(latent_ptr + i, first, mask=i <= F)
    size = next_first - first
    tl.store(counts + i + 1, tl.where(size > segment, (size + segment - 1) // segment, 0), mask=i < F)
    tl.store(counts + i, i * 0, mask=i == 0)


def by_latent(pairs: Pairs) -> Segmented:
    """The pairs of each latent, rows ascending; made once for these places, without a host sync."""
    return pairs.once("triton by_latent", lambda: _by_latent(pairs))


def _by_latent(pairs: Pairs) -> Segmented:
    num_pairs, num_latents, device = len(pairs), pairs.num_latents, pairs.latent.device
    # Half as many bits to sort by: latents are far below 2³¹.
    latent, pair = torch.sort(pairs.latent.to(torch.int32), stable=True)
    latent_ptr, counts = torch.empty(2, num_latents + 1, dtype=torch.int64, device=device)
    row, segment = torch.empty_like(pair), max(SEGMENT, padded(blocks(2 * num_pairs, MOST_SEGMENTS)))
    launch(
        _places_kernel, (blocks(max(num_pairs, num_latents + 1), BLOCK),), latent, pair, rows_of(pairs), row,
        latent_ptr, counts, num_pairs, num_latents, segment, STEPS=num_pairs.bit_length(), N=BLOCK,
    )  # fmt: skip
    return Segmented(latent_ptr=latent_ptr, row=row, pair=pair, segment=segment, counts=counts)
