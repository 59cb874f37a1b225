"""The one defined order of sums of a pre-activation."""

import pytest
import torch

from saecache.train.backends.triton import exact as module
from saecache.train.backends.triton import random_numbers
from saecache.train.backends.triton.exact import exact, exact_at, exact_matrix, rows_of, sddmm
from saecache.train.pairs import Pairs

from .cases import assert_close, codes, factors


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("width", [1, 20, 256, 300])
def test_products_are_those_of_float64(width: int, whole: bool) -> None:
    x, W, b = factors(11, 19, width, whole=whole)
    want = x.double() @ W.double().T + b.double()
    assert_close(exact_matrix(x, W, b), want, whole=whole)
    assert_close(exact_matrix(W, x, b, "row"), want.T, whole=whole)
    pairs = codes(11, 19, 0.3, whole=whole)
    assert_close(exact(pairs, x, W, b), want[pairs.rows(), pairs.latent], whole=whole)


def test_a_pre_activation_depends_on_its_row_and_latent_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, b = factors(13, 21, 300, whole=False)
    matrix = exact_matrix(x, W, b)
    pairs = codes(13, 21, 0.4, whole=False)
    at = exact(pairs, x, W, b)
    for name in ("PAIRS", "TILE"):  # as shipped; conftest.py makes them larger
        monkeypatch.setattr(module, name, 8)
    assert torch.equal(exact(pairs, x, W, b), at)
    assert torch.equal(exact_matrix(x, W, b), matrix)
    at_pairs = matrix[pairs.rows(), pairs.latent]
    assert torch.equal(exact(pairs, x, W, b), at_pairs)
    assert torch.equal(sddmm(pairs, x, W) + b[pairs.latent], at_pairs)
    assert torch.equal(exact_matrix(W, x, b, "row"), matrix.T)
    for row in (0, 12):
        alone = Pairs.from_dense(torch.ones(1, 21))
        assert torch.equal(exact(alone, x[row : row + 1].clone(), W, b), matrix[row])


def test_the_order_of_sums_is_the_documented_one() -> None:
    x, W, _ = factors(1, 1, 700, whole=False)
    x = torch.randn(1, 700, generator=torch.Generator().manual_seed(9))
    lanes = torch.zeros(256)
    for column in range(700):  # the interpreter rounds the product and the sum, a GPU both at once
        lanes[column % 256] += x[0, column] * W[0, column]
    sums = lanes.view(2, 128).sum(0).view(64, 2).sum(1).view(32, 2).sum(1)
    while len(sums) > 1:
        sums = sums.view(2, -1).sum(0)
    assert float(exact_matrix(x, W, None)) == float(sums)


def test_only_the_counted_places_are_written() -> None:
    x, W, b = factors(5, 9, 20, whole=True)
    row, latent = torch.arange(40, dtype=torch.int32) % 5, torch.arange(40, dtype=torch.int32) % 9
    out = torch.full((40,), -99.0)
    exact_at(row, latent, x, W, b, out, count=torch.tensor([18]))
    assert torch.equal(out[:18], (x @ W.T + b)[row[:18].long(), latent[:18].long()])
    assert bool((out[18:] == -99).all())


def test_rows_of_pairs_with_empty_rows() -> None:
    pairs = codes(9, 40, 0.9, whole=True)
    assert torch.equal(rows_of(pairs), pairs.rows())


def test_grids_are_not_too_high_for_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA starts at most 65,535 programs in the second and third dimension."""
    grids = []
    for one in (module, random_numbers):
        monkeypatch.setattr(one, "launch", lambda function, grid, *_, **__: grids.append(grid))
    exact_matrix(torch.ones(600_000, 1), torch.ones(1, 1), None)
    random_numbers.random_uniform(0, 0, 0, 70_000, 1, "cpu")
    assert len(grids) == 2
    assert all(size <= 65_535 for grid in grids for size in grid[1:])


def test_nothing_to_do() -> None:
    x, W, b = factors(4, 9, 20, whole=True)
    none = Pairs.from_dense(torch.zeros(4, 9))
    assert exact(none, x, W, b).shape == (0,)
    assert exact(Pairs.from_dense(torch.zeros(0, 9)), x[:0], W, b).shape == (0,)
    assert exact_matrix(x[:0], W, b).shape == (0, 9)


def test_wrong_rows_are_refused() -> None:
    x, W, b = factors(4, 9, 20, whole=True)
    with pytest.raises(ValueError, match="W must have 19 columns"):
        exact_matrix(x[:, :19].contiguous(), W, b)
    with pytest.raises(ValueError, match="float32 matrix"):
        exact_matrix(x.double(), W, b)
