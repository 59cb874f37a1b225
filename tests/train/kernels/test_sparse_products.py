"""decode, sddmm and accumulate_by_latent against dense float64, compiled and in plain torch."""

import pytest
import torch

from saecache.train.backends.compiled.kernels_old import accumulate_by_latent, decode, sddmm
from saecache.train.backends.compiled.transpose import by_latent
from saecache.train.backends.dispatch import only_torch
from saecache.train.pairs import Pairs


@pytest.fixture(params=["compiled", "torch"])
def implementation(request):
    if request.param == "torch":
        with only_torch():
            yield
    else:
        yield


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("implementation")
def test_decode(pairs, normal):
    W_dec, bias = normal(90, 20), normal(20)
    expected = pairs.to_dense().double() @ W_dec.double()
    close(decode(pairs, W_dec), expected)
    close(decode(pairs, W_dec, bias), expected + bias)
    out = torch.full((pairs.num_rows, 20), torch.nan)
    assert decode(pairs, W_dec, bias, out=out) is out
    close(out, expected + bias)


@pytest.mark.usefixtures("implementation")
def test_sddmm(pairs, normal):
    g, W_dec = normal(pairs.num_rows, 20), normal(90, 20)
    close(sddmm(pairs, g, W_dec), (g.double() @ W_dec.double().T)[pairs.rows(), pairs.latent])


@pytest.mark.usefixtures("implementation")
def test_accumulate_by_latent(pairs, normal):
    coefficient, source, out = normal(len(pairs)), normal(pairs.num_rows, 20), normal(90, 20)
    dense = pairs.with_value(coefficient).to_dense().double()
    expected = out.double() + dense.T @ source.double()
    accumulate_by_latent(pairs, coefficient, source, out)
    close(out, expected)


@pytest.mark.usefixtures("implementation")
def test_by_latent(pairs):
    order = by_latent(pairs)
    assert torch.equal(order.latent_ptr.diff(), pairs.count_per_latent())
    assert torch.equal(order.pair, pairs.latent.argsort(stable=True))
    assert torch.equal(order.row, pairs.rows()[order.pair])


def test_slices_of_larger_tensors(normal):
    """Parts of a batch are views; so may be parameters."""
    pairs = Pairs.from_dense((torch.arange(50 * 90).view(50, 90) % 7 == 0).float()).slice_rows(10, 40)
    g, W_dec = normal(50, 20)[10:40], normal(90, 40)[:, ::2]
    dense = pairs.to_dense().double()
    close(decode(pairs, W_dec), dense @ W_dec.double())
    close(sddmm(pairs, g, W_dec), (g.double() @ W_dec.double().T)[pairs.rows(), pairs.latent])
    out = torch.zeros(90, 40)[:, ::2]
    accumulate_by_latent(pairs, pairs.value, g, out)
    close(out, dense.T @ g.double())


def test_parameters_that_require_gradients(pairs, normal):
    W_dec = normal(90, 20).requires_grad_()
    with torch.no_grad():
        close(decode(pairs, W_dec), pairs.to_dense().double() @ W_dec.double())


def test_other_dtypes_fall_back(pairs, normal):
    W_dec = normal(90, 20).double()
    doubled = pairs.with_value(pairs.value.double())
    torch.testing.assert_close(decode(doubled, W_dec), doubled.to_dense() @ W_dec)


def test_same_bits_on_any_number_of_threads(pairs, normal, threads):
    g, W_dec = normal(pairs.num_rows, 20), normal(90, 20)
    seen = []
    for num_threads in (1, 2, 3):
        threads(num_threads)
        out = torch.zeros(90, 20)
        accumulate_by_latent(pairs, pairs.value, g, out)
        seen.append((decode(pairs, W_dec), sddmm(pairs, g, W_dec), out))
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("width", [1, 20, 64, 100, 768])
def test_a_product_does_not_depend_on_its_neighbours(normal, width):
    """What the selection rules rely on: any subset of pairs has the same pre-activations, bit for bit."""
    g, W = normal(30, width), normal(90, width)
    every = Pairs.from_dense(torch.ones(30, 90))
    products = sddmm(every, g, W)
    some = torch.arange(len(every)) * 7919 % 5 == 0
    assert torch.equal(sddmm(every.keep(some), g, W), products[some])


def test_nan_goes_where_it_belongs(normal):
    pairs = Pairs.from_dense(torch.eye(4))
    source = normal(4, 3)
    source[2, 1] = torch.nan
    out = torch.zeros(4, 3)
    accumulate_by_latent(pairs, pairs.value, source, out)
    assert out.isnan().nonzero().tolist() == [[2, 1]]
    assert sddmm(pairs, source, normal(4, 3)).isnan().tolist() == [False, False, True, False]
