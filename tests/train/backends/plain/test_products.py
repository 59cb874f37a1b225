"""Products and sums are right, and their bits do not depend on the number of threads."""

import pytest
import torch

from saecache.train.backends.plain import products
from saecache.train.backends.plain.products import dot_products, matmul, part_of, total, weighted_sum


def test_products_and_sums_equal_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(150, 70, generator=generator), torch.randn(70, 9, generator=generator)
    torch.testing.assert_close(matmul(a, b), a @ b)
    out = torch.ones(150, 9)
    assert matmul(a, b, out) is out
    torch.testing.assert_close(out, a @ b)
    torch.testing.assert_close(matmul(a, b, out, add=True), 2 * (a @ b))
    torch.testing.assert_close(matmul(b.T, b, add=True, out=torch.zeros(9, 9)), b.T @ b)
    torch.testing.assert_close(weighted_sum(a[:, 0], a), a[:, 0] @ a)
    assert float(total(a.double())) == pytest.approx(float(a.double().sum()), rel=1e-12)
    assert float(total(torch.zeros(0))) == 0


@pytest.mark.parametrize("rows", [1, 2, 65, 300, 70_000])
def test_same_bits_for_every_number_of_threads(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, 24, generator=generator), torch.randn(24, 40, generator=generator)
    weight = torch.randn(rows, generator=generator)
    before, seen = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 4, 8):
            torch.set_num_threads(number)
            sums = matmul(x.T, x), weighted_sum(weight, x), total(x), total(x.square().double())
            seen.append((matmul(x, w), *sums))
    finally:
        torch.set_num_threads(before)
    for found in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, seen[0], strict=True))


@pytest.mark.parametrize("size", [2, 3, 64, 65, 4096, 4097, 262_144])
def test_there_is_a_part_for_every_thread(size: int) -> None:
    assert 2 <= -(-size // part_of(size)) <= 65


@pytest.mark.parametrize("width", [1, 2, 3, 31, 32, 33, 100, 768])
def test_a_dot_product_has_one_order_of_sums(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are folded, whatever the number of pairs that are added up at a time."""
    generator = torch.Generator().manual_seed(0)
    g, W = torch.randn(30, width, generator=generator), torch.randn(90, width, generator=generator)
    row, latent = torch.arange(500) * 7 % 30, torch.arange(500) * 11 % 90
    columns = list((g[row] * W[latent]).T)
    while len(columns) > 1:
        kept = (len(columns) + 1) // 2
        columns = [
            columns[i] + columns[i + kept] if i + kept < len(columns) else columns[i] for i in range(kept)
        ]
    found = dot_products(g, W, row, latent)
    assert torch.equal(found, columns[0])
    for size in (1, 3, 499):
        monkeypatch.setattr(products, "CHUNK_PAIRS", size)
        assert torch.equal(dot_products(g, W, row, latent), found)
