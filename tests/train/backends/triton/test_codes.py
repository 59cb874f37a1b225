"""Sums over the pairs of a row, and over those of a latent, against the CPU's kernels."""

import pytest
import torch

from saecache.train.backends.compiled import backend as kernels
from saecache.train.backends.plain import products as transpose
from saecache.train.backends.triton import transpose as triton_transpose
from saecache.train.backends.triton.decode import decode, reconstruct
from saecache.train.backends.triton.exact import sddmm
from saecache.train.backends.triton.gradients import accumulate_by_latent, weight_gradients
from saecache.train.backends.triton.sums import count_per_latent, sum_per_latent
from saecache.train.backends.triton.transpose import by_latent
from saecache.train.pairs import Pairs

from .cases import assert_close, codes, factors, numbers

B, F, D = 80, 23, 30


@pytest.mark.parametrize("whole", [True, False])
def test_decode(whole: bool) -> None:
    pairs, W = codes(B, F, 0.1, whole=whole), numbers(F, D, seed=6, whole=whole)
    assert_close(decode(pairs, W), kernels.decode(pairs, W), whole=whole)
    out = torch.full((B, D), 7.0)
    assert decode(pairs, W, W[0].clone(), out) is out
    assert_close(out, kernels.decode(pairs, W, W[0].clone()), whole=whole)


@pytest.mark.parametrize("whole", [True, False])
def test_reconstruct(whole: bool) -> None:
    pairs, W = codes(B, F, 0.1, whole=whole), numbers(F, D, seed=6, whole=whole)
    x = numbers(B, D, seed=7, whole=whole)
    error, dots, squared = reconstruct(pairs, W, x)
    want = kernels.decode(pairs, W) - x
    assert_close(error, want, whole=whole)
    assert_close(dots, kernels.sddmm(pairs, want, W), whole=whole, relative=3e-6)
    assert torch.equal(dots, sddmm(pairs, error, W))
    assert_close(squared, want.double().square().sum(1), whole=whole)


def test_values_and_outputs_may_be_views_with_gaps() -> None:
    pairs, W = codes(B, F, 0.1, whole=True), numbers(F, D, seed=6, whole=True)
    spread = torch.full((len(pairs), 2), 9.0)
    spread[:, 0] = pairs.value
    view = pairs.with_value(spread[:, 0])
    around = torch.full((B, 2 * D), 7.0)
    decode(view, W, W[0].clone(), around[:, ::2])
    assert torch.equal(around[:, ::2], decode(pairs, W, W[0].clone()))
    assert bool((around[:, 1::2] == 7).all())
    assert torch.equal(sum_per_latent(view, view.value), sum_per_latent(pairs, pairs.value))


def test_by_latent_is_stable() -> None:
    pairs = codes(B, F, 0.2, whole=True)
    got, want = by_latent(pairs), transpose.by_latent(pairs)
    assert torch.equal(got.latent_ptr, want.latent_ptr)
    assert torch.equal(got.row, want.row)
    assert torch.equal(got.pair, want.pair)
    assert by_latent(pairs.with_value(pairs.value * 2)) is got


@pytest.mark.parametrize("whole", [True, False])
def test_sums_per_latent(whole: bool) -> None:
    pairs = codes(300, F, 0.05, whole=whole)
    assert_close(sum_per_latent(pairs, pairs.value), kernels.sum_per_latent(pairs, pairs.value), whole=whole)
    assert torch.equal(count_per_latent(pairs), pairs.count_per_latent())


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_gradients(whole: bool, add: bool) -> None:
    pairs = codes(B, F, 0.05, whole=whole)
    assert int(pairs.count_per_latent()[3]) > triton_transpose.SEGMENT, "a latent of several segments"
    x, error, _ = factors(B, B, D, whole=whole)
    g = numbers(len(pairs), seed=8, whole=whole)
    got = [torch.ones(F, D), torch.ones(F, D), torch.ones(F)]
    want = [torch.full_like(t, float(add)) for t in got]
    weight_gradients(pairs, g, pairs.value, x, error, *got, add=add)
    kernels.accumulate_by_latent(pairs, g, x, want[0])
    kernels.accumulate_by_latent(pairs, pairs.value, error, want[1])
    want[2] += kernels.sum_per_latent(pairs, g)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, whole=whole)
    out = torch.ones(F, D)
    accumulate_by_latent(pairs, g, x, out, add=add)
    assert torch.equal(out, got[0])


def test_segments_grow_so_that_the_scratch_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, x = codes(B, F, 0.5, whole=True), numbers(B, D, seed=7, whole=True)
    monkeypatch.setattr(triton_transpose, "SEGMENT", 4)
    monkeypatch.setattr(triton_transpose, "MOST_SEGMENTS", 64)
    got, want = torch.zeros(F, D), torch.zeros(F, D)
    accumulate_by_latent(pairs, pairs.value, x, got)
    kernels.accumulate_by_latent(pairs, pairs.value, x, want)
    assert torch.equal(got, want)
    assert by_latent(pairs).most_segments <= 64


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_nothing_to_add_up(rows: int) -> None:
    pairs, x, W = Pairs.from_dense(torch.zeros(rows, F)), torch.ones(rows, D), torch.ones(F, D)
    assert torch.equal(decode(pairs, W), torch.zeros(rows, D))
    error, dots, squared = reconstruct(pairs, W, x)
    assert torch.equal(error, -x)
    assert dots.shape == (0,)
    assert torch.equal(squared, torch.full((rows,), float(D)))
    assert torch.equal(sum_per_latent(pairs, pairs.value), torch.zeros(F))
    out = [torch.ones(F, D), torch.ones(F, D), torch.ones(F)]
    weight_gradients(pairs, pairs.value, pairs.value, x, x, *out)
    assert all(bool((t == 1).all()) for t in out)
    weight_gradients(pairs, pairs.value, pairs.value, x, x, *out, add=False)
    assert all(bool((t == 0).all()) for t in out)
