"""Matrix products give the same results as products pair by pair."""

import pytest
import torch

from saecache.train.backends.compiled import pair_products as kernels
from saecache.train.pairs import Pairs
from saecache.train.variants.base import products

B, D, F = 30, 7, 50


def make_codes(share: float) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(B, F, generator=generator) < share
    return Pairs.from_dense(torch.randn(B, F, generator=generator) * active)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("dense_share", [-1.0, 1 / 8, 2.0])
def test_matrices_and_pairs_give_equal_products(
    share: float, dense_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "DENSE_SHARE", dense_share)
    codes, W_dec = make_codes(share), torch.randn(F, D)
    g, coefficient, out = torch.randn(B, D), torch.randn(len(codes)), torch.randn(F, D)
    error, d_value, squared_error = products.reconstruct(codes, W_dec, g, 0.5)
    torch.testing.assert_close(error, codes.to_dense() @ W_dec - g)
    torch.testing.assert_close(d_value, 0.5 * kernels.sddmm(codes, error, W_dec))
    torch.testing.assert_close(squared_error, error.double().square().sum())
    wanted = out + codes.with_value(coefficient).to_dense().T @ g
    products.accumulate_by_latent(codes, coefficient, g, out)
    torch.testing.assert_close(out, wanted)
    for_decoder = out + 0.5 * codes.to_dense().T @ error
    sums = products.weight_gradients(codes, coefficient, g, error, 0.5, out, decoder := out.clone())
    torch.testing.assert_close(out, wanted + codes.with_value(coefficient).to_dense().T @ g)
    torch.testing.assert_close(decoder, for_decoder)
    torch.testing.assert_close(sums, codes.with_value(coefficient).to_dense().sum(0))


def test_matrices_are_for_many_pairs_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products.prefers_matrices(make_codes(0.5))
    assert not products.prefers_matrices(make_codes(0.05))
    monkeypatch.setattr(products, "block_bytes", lambda device: 2 * B * F - 1)
    assert not products.prefers_matrices(make_codes(0.5))
