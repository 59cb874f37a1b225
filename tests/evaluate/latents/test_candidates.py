"""Candidates that are kept in a stream are those of a sort of everything, in any order and in any blocks."""

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate.latents.candidates import (
    ActivationHistograms,
    SmallestPerLatent,
    draw_priorities,
    rank_within_groups,
)
from saecache.evaluate.latents.passages import Passages
from saecache.evaluate.latents.table import EMPTY

LATENTS, TOKENS = 7, 400


@pytest.fixture(params=range(4))
def stream(request):
    """Activations (latent, key, token) with many equal keys, one for each latent and token at most."""
    random = np.random.default_rng(request.param)
    pairs = random.permutation(LATENTS * TOKENS)[: random.integers(5, 1500)]
    latent, token = np.divmod(pairs, TOKENS)
    return latent, random.integers(0, 20, len(pairs)).astype(np.float32), token


def fed(stream, num_kept: int, block: int, group=None) -> SmallestPerLatent:
    kept = SmallestPerLatent(LATENTS, num_kept, np.dtype(np.float32), group)
    for start in range(0, len(stream[0]), block):
        kept.update(*(values[start : start + block] for values in stream))
    return kept


@pytest.mark.parametrize("block", [1, 50, 10**6])
@pytest.mark.parametrize("with_groups", [False, True])
def test_the_smallest_are_kept(stream, block: int, with_groups: bool) -> None:
    group = np.arange(TOKENS) // 9 if with_groups else None
    kept = fed(stream, 5, block, group)
    for latent in range(LATENTS):
        own = [(k, t) for f, k, t in zip(*stream, strict=True) if f == latent]
        chosen, seen = [], set()
        for key, token in sorted(own):
            name = token // 9 if with_groups else token
            if name not in seen:
                seen.add(name)
                chosen.append((key, token))
        chosen = chosen[:5]
        there = kept.offset[latent] != EMPTY
        assert list(zip(kept.key[latent][there], kept.offset[latent][there], strict=True)) == chosen


def test_priorities_are_those_of_splitmix_and_even() -> None:
    """Against the generator in plain integers; and 64 bins of 20,000 draws are as full as chance has it."""

    def splitmix(z: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> shift)) * factor % 2**64
        return z ^ (z >> 31)

    latent, token = np.arange(20_000) % 100, np.arange(20_000) // 100
    drawn = draw_priorities(latent, token, seed=5)
    for i in (0, 1, 12_345):
        start = (int(latent[i]) << 32) + int(token[i]) + 6 * 0x9E3779B97F4A7C15
        assert int(drawn[i]) == splitmix(start % 2**64)
    counts = np.bincount((drawn >> np.uint64(58)).astype(int), minlength=64)
    assert (np.square(counts - 312.5) / 312.5).sum() < 63 + 5 * np.sqrt(126)
    assert not np.array_equal(drawn, draw_priorities(latent, token, seed=6))


@pytest.mark.parametrize("block", [1, 17, 10**6])
def test_histograms_of_any_order(block: int) -> None:
    random = np.random.default_rng(1)
    latent = random.integers(0, LATENTS - 1, 900)
    size = np.exp(random.normal(0, 6, 900)).astype(np.float32)
    size[:3] = [2.0**-149, 1, 2.0**100]  # the smallest number, a bin's edge, a large one
    found = ActivationHistograms(LATENTS)
    for start in range(0, len(latent), block):
        found.update(latent[start : start + block], size[start : start + block])
    for f in range(LATENTS):
        own = size[latent == f].astype(np.float64)
        assert found.fires[f] == len(own)
        if len(own):
            assert found.largest[f] == own.max()
            edges = np.linspace(0, 2.0 ** found.exponent[f], 65)
            assert edges[32] <= own.max() < edges[64]
            assert np.array_equal(found.counts[f], np.histogram(own, edges)[0])
            assert found.sum[f] == pytest.approx(own.sum())


def test_ranks_within_groups() -> None:
    assert rank_within_groups(np.array([3, 3, 1, 1, 1, 3])).tolist() == [0, 1, 0, 1, 2, 0]
    assert rank_within_groups(np.array([], dtype=int)).tolist() == []


@pytest.mark.parametrize(("length", "wanted"), [(2, [0]), (2, [1, 3]), (0, [1])])
def test_rows_on_padding_have_no_text(length: int, wanted: list[int]) -> None:
    one = np.zeros(min(length, 1), dtype=np.int64)
    ptr = np.unique([0, length])
    passages = Passages(
        context=4, ids=np.arange(length, dtype=np.int32), ptr=ptr, sequence=one, position=one + 1,
        document=one.astype(np.int32),
    )  # fmt: skip
    assert passages.find(np.arange(1, 1 + length)).tolist() == list(range(length))
    with pytest.raises(UsageError, match=r"1 of \d rows of the cache stand on padding"):
        passages.find(np.asarray(wanted))
