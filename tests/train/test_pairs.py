"""Pairs give the same results as dense matrices."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saecache.train.backends.plain.products import sum_per_latent
from saecache.train.pairs import Pairs


def random_dense(rows: int, latents: int, density: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, latents, generator=generator)
    return values * (torch.rand(rows, latents, generator=generator) < density)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 7), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99))
def test_round_trip_and_sums(rows: int, latents: int, density: float, seed: int) -> None:
    dense = random_dense(rows, latents, density, seed)
    pairs = Pairs.from_dense(dense)
    assert torch.equal(pairs.to_dense(), dense)
    assert (pairs.num_rows, pairs.num_latents, len(pairs)) == (rows, latents, int((dense != 0).sum()))
    assert torch.equal(pairs.rows(), dense.nonzero()[:, 0])
    assert torch.equal(pairs.count_per_latent(), (dense != 0).sum(0))
    torch.testing.assert_close(sum_per_latent(pairs, pairs.value), dense.sum(0))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.data())
def test_slices_and_masks(seed: int, data: st.DataObject) -> None:
    dense = random_dense(8, 6, 0.5, seed)
    pairs = Pairs.from_dense(dense)
    start = data.draw(st.integers(0, 8))
    stop = data.draw(st.integers(start, 8))
    assert torch.equal(pairs.slice_rows(start, stop).to_dense(), dense[start:stop])
    assert torch.equal(pairs.keep(pairs.value > 0).to_dense(), dense.clamp(min=0))
    assert torch.equal(pairs.with_value(2 * pairs.value).to_dense(), 2 * dense)


def test_sums_keep_their_dtype_even_without_pairs() -> None:
    pairs = Pairs.from_dense(torch.zeros(3, 4))
    assert sum_per_latent(pairs, pairs.value).dtype == torch.float32
    assert sum_per_latent(pairs, pairs.value).tolist() == [0, 0, 0, 0]
    assert pairs.keep(pairs.value > 0).to_dense().tolist() == [[0] * 4] * 3


def test_keeping_everything_copies_nothing() -> None:
    pairs = Pairs.from_dense(torch.ones(2, 2))
    assert pairs.keep(pairs.value > 0) is pairs


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows(rows: int) -> None:
    assert Pairs.from_dense(torch.zeros(rows, 5)).to_dense().shape == (rows, 5)


def test_pairs_at_the_same_places_share_what_is_made_once() -> None:
    pairs = Pairs.from_dense(random_dense(8, 6, 0.5, 0))
    assert pairs.once("answer", lambda: 1) == 1
    assert pairs.once("answer", lambda: 2) == 1
    assert pairs.with_value(2 * pairs.value).once("answer", lambda: 3) == 1
    elsewhere = replace(pairs, latent=pairs.latent + 1, num_latents=7)
    assert elsewhere.once("answer", lambda: 4) == 4
    assert pairs.slice_rows(0, 4).once("answer", lambda: 5) == 5
