"""A few activations of every latent, chosen while all activations stream by, in memory that does not grow.

Everything here depends on which activations there are, and not on the order or the blocks in which they come.
Legend: F latents, C candidates per latent, P activations of a block, L tokens of the text.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .table import BINS, EMPTY

Ints = NDArray[np.int64]
Floats32 = NDArray[np.float32]


class SmallestPerLatent:
    """The ``num_kept`` activations of each latent with the smallest keys; ties go to the earlier token.

    With ``group`` [L], of the activations of one group of tokens only the one with the smallest key counts.
    """

    def __init__(
        self, num_latents: int, num_kept: int, key: np.dtype[Any], group: NDArray[np.integer] | None = None
    ) -> None:
        self._last = np.finfo(key).max if key.kind == "f" else np.iinfo(key).max
        self.key = np.full((num_latents, num_kept), self._last, dtype=key)
        """[F, C], ascending."""
        self.offset = np.full((num_latents, num_kept), EMPTY, dtype=np.int32)
        """int32 [F, C], the tokens; ``EMPTY`` where there are fewer activations."""
        self._group = group

    def update(self, latent: Ints, key: NDArray[Any], offset: Ints) -> None:
        """Add activations: the latents, keys and tokens of each, [P]."""
        num_kept = self.key.shape[1]
        may_enter = key <= self.key[latent, -1]
        latent, key, offset = latent[may_enter], key[may_enter], offset[may_enter]
        if len(latent) == 0 or num_kept == 0:
            return
        touched = np.unique(latent)
        former = np.repeat(touched, num_kept)
        there = self.offset[touched].ravel() != EMPTY
        latent = np.concatenate([former[there], latent])
        key = np.concatenate([self.key[touched].ravel()[there], key])
        offset = np.concatenate([self.offset[touched].ravel()[there].astype(np.int64), offset])
        order = np.lexsort((offset, key, latent))
        latent, key, offset = latent[order], key[order], offset[order]
        if self._group is not None:
            first = _first_of_each(latent * (int(self._group.max()) + 1) + self._group[offset])
            latent, key, offset = latent[first], key[first], offset[first]
        rank = rank_within_groups(latent)
        kept = rank < num_kept
        self.key[touched], self.offset[touched] = self._last, EMPTY
        self.key[latent[kept], rank[kept]] = key[kept]
        self.offset[latent[kept], rank[kept]] = offset[kept]


def rank_within_groups(group: NDArray[np.integer]) -> Ints:
    """The place of each item among those of its group; items of one group follow one another."""
    begins = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[begins, len(group)])
    return np.arange(len(group)) - np.repeat(begins, lengths)


def _first_of_each(value: Ints) -> Ints:
    """The place of the first item of each value, ascending."""
    return np.sort(np.unique(value, return_index=True)[1])


def draw_priorities(latent: Ints, offset: Ints, seed: int) -> NDArray[np.uint64]:
    """A pseudorandom uint64 for each activation, which depends on nothing but latent, token and seed.

    The activations of a latent with the smallest ones are a uniform sample. SplitMix64 (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        z = (latent.astype(np.uint64) << np.uint64(32)) + offset.astype(np.uint64)
        z = z + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        drawn: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return drawn


class ActivationHistograms:
    """How often each latent is active, and how strongly: ``BINS`` bins of equal width from 0 for each latent.

    The right edge is a power of two above the latent's largest activation, at most twice that. When a larger
    one comes, pairs of bins are joined: so counts are exact, whatever comes first.
    """

    def __init__(self, num_latents: int) -> None:
        self.counts = np.zeros((num_latents, BINS), dtype=np.int64)
        self.exponent = np.zeros(num_latents, dtype=np.int32)
        """The right edge is 2^exponent."""
        self.fires = np.zeros(num_latents, dtype=np.int64)
        self.sum = np.zeros(num_latents)
        self.largest = np.zeros(num_latents, dtype=np.float32)

    def update(self, latent: Ints, size: Floats32) -> None:
        """Add activations: the latent and the absolute value, above 0, of each, [P]."""
        if len(latent) == 0:
            return
        num_latents = len(self.fires)
        largest = np.zeros(num_latents, dtype=np.float32)
        np.maximum.at(largest, latent, size)
        seen = np.flatnonzero(largest)
        needed = np.frexp(largest[seen])[1].astype(np.int32)  # 2^(e - 1) <= largest < 2^e
        first = self.fires[seen] == 0
        self.exponent[seen[first]] = needed[first]
        self._widen(seen, needed - self.exponent[seen])
        self.largest = np.maximum(self.largest, largest)
        place = np.ldexp(size.astype(np.float64), 6 - self.exponent[latent]).astype(np.int64)
        flat = np.bincount(latent * BINS + place, minlength=num_latents * BINS)
        self.counts += flat.reshape(num_latents, BINS)
        self.fires += np.bincount(latent, minlength=num_latents)
        self.sum += np.bincount(latent, weights=size, minlength=num_latents)

    def _widen(self, latents: Ints, doublings: NDArray[np.int32]) -> None:
        for _ in range(max(int(doublings.max()), 0)):
            wider = latents[doublings > 0]
            joined = self.counts[wider].reshape(len(wider), BINS // 2, 2).sum(2)
            self.counts[wider] = np.pad(joined, ((0, 0), (0, BINS // 2)))
            self.exponent[wider] += 1
            doublings = doublings - 1
