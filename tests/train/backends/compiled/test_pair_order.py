"""Products give the same bits in tiles of any size."""

import numpy as np
import pytest
import torch

from saecache.train.backends.compiled import pair_order
from saecache.train.backends.compiled.pair_order import LEAST_PAIRS, tile_cuts
from saecache.train.backends.compiled.pair_products import accumulate_by_latent, decode, sddmm
from saecache.train.pairs import Pairs

WIDTH = 20
ROW_BYTES = 4 * WIDTH


def by_tiles(most_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_order, "TILE_BYTES", most_rows * ROW_BYTES)


@pytest.mark.parametrize("most_rows", [7, 15, 40])
def test_products_have_the_same_bits(pairs, normal, monkeypatch, most_rows):
    g, W, start = normal(pairs.num_rows, WIDTH), normal(90, WIDTH), normal(90, WIDTH)

    def products() -> tuple[torch.Tensor, ...]:
        gradient = start.clone()
        accumulate_by_latent(pairs, pairs.value, g, gradient)
        return decode(pairs, W), sddmm(pairs, g, W), gradient

    whole = products()
    by_tiles(most_rows, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(whole, products(), strict=True))


def cuts_of(pairs: Pairs) -> np.ndarray:
    row_ptr, latent = pairs.row_ptr.numpy(), pairs.latent.numpy()
    return tile_cuts(row_ptr[:-1], row_ptr[1:], latent, ROW_BYTES)


def test_a_tile_has_few_matrix_rows_and_all_their_pairs(monkeypatch):
    """Every third of 90 latents is used; tiles count only these."""
    mask = torch.zeros(150, 90)
    mask[:, ::3] = 1
    pairs = Pairs.from_dense(mask)
    by_tiles(7, monkeypatch)
    cuts = cuts_of(pairs)
    assert len(cuts) - 1 == -(-30 // 7)
    assert np.array_equal(cuts[0], pairs.row_ptr[:-1]) and np.array_equal(cuts[-1], pairs.row_ptr[1:])
    latents = [set(pairs.latent[cuts[t, r] : cuts[t + 1, r]].tolist()) for t in range(5) for r in range(150)]
    assert all(a == b for a, b in zip(latents, sorted(latents, key=min), strict=True))
    assert max(map(len, latents)) == 7


def test_few_pairs_are_not_cut(monkeypatch):
    by_tiles(7, monkeypatch)
    assert len(cuts_of(Pairs.from_dense(torch.ones(150, 90)))) > 2
    few = torch.zeros(150, 90)
    few[:, :: 90 // (2 * LEAST_PAIRS - 1)] = 1
    assert len(cuts_of(Pairs.from_dense(few[:, :84]))) == 2
    assert len(cuts_of(Pairs.from_dense(torch.zeros(3, 90)))) == 2
