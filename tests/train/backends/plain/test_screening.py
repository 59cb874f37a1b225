"""The bounds of the screening product hold for every way in which a device can read its factors."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from saecache.train.backends import sources
from saecache.train.backends.plain import backend as plain
from saecache.train.backends.plain import screening
from saecache.train.backends.plain.products import dot_products, matmul
from saecache.train.backends.plain.screening import product_error, screened_blocks
from saecache.train.backends.sources import Encoder
from saecache.train.pairs import Pairs
from saecache.train.selection import reference

CPU = torch.device("cpu")
Install = Callable[[int, bool], None]


@pytest.fixture
def precision() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def worst_rows(num: int, width: int, bits: int, *, cut: bool) -> Tensor:
    """Rows in which every number loses as much as it can when only ``bits`` bits follow the leading one."""
    generator = torch.Generator().manual_seed(num)
    below = 2.0**-bits * ((1 if cut else 0.5) - 2.0**-6)
    powers = torch.randint(-3, 4, (num, 1), generator=generator)
    return torch.exp2(powers.float()).expand(num, width) * (1 + below)


@pytest.mark.parametrize("bits", [10, 7])
@pytest.mark.parametrize("cut", [False, True], ids=["rounded", "cut"])
@pytest.mark.parametrize("width", [1, 7, 64, 768])
def test_pre_activations_are_within_the_bounds(
    round_products: Install, bits: int, cut: bool, width: int
) -> None:
    round_products(bits, cut)
    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(size, generator=generator) for size in ((40, width), (90, width), (90,))]
    off = 0.0  # the largest error as a share of its bound: 1 would be the least possible bound
    worst = [worst_rows(num, width, bits, cut=cut) for num in (40, 90)]
    for x, W, b in (normal, (*worst, torch.zeros(90))):
        for block in screened_blocks(Encoder(x, W, b, 16)):
            exact = block.candidates(torch.ones_like(block.score, dtype=torch.bool)).value.view_as(
                block.score
            )
            assert bool((block.lower() <= exact).all() and (exact <= block.upper()).all())
            assert block.error is not None
            off = max(off, float(((exact - block.score).abs() / block.error).max()))
    assert off > (0.8 if cut else 0.4)


def test_the_error_follows_the_setting(precision: Callable[[str], None]) -> None:
    errors = []
    for name in ("highest", "high", "medium"):
        precision(name)
        errors.append(product_error(CPU, torch.float32, 64))
    assert errors[0] < 1e-4 and 2.0**-9 < errors[1] < 2.0**-8 and 2.0**-6 < errors[2] < 2.0**-5


@pytest.mark.parametrize(("bits", "reading"), [(10, 2.0**-10), (7, 2.0**-7)])
@pytest.mark.parametrize("width", [1, 64, 4096])
def test_the_trial_finds_what_torch_does_not_say(
    round_products: Install, bits: int, reading: float, width: int
) -> None:
    """At a large width the rounding of sums alone could be as large as that of the factors."""
    round_products(bits, False)
    assert product_error(CPU, torch.float32, width) >= 2 * reading


def test_a_product_without_bounds_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pre-activations are computed one by one, and the selection is right."""

    def wrong(a: Tensor, b: Tensor, out: Tensor | None = None, **settings: Any) -> Tensor:
        return matmul(a, b, out, **settings).mul_(-3)

    for module in (sources, screening):
        monkeypatch.setattr(module, "matmul", wrong)
    monkeypatch.setattr(screening, "_proven_error", cache(screening._proven_error.__wrapped__))
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(size, generator=generator) for size in ((20, 8), (50, 8), (50,)))
    assert product_error(CPU, torch.float32, 8) == torch.inf
    every = Pairs.from_dense(torch.ones(20, 50))
    pre = (plain.sddmm(every, x, W) + b[every.latent]).view(20, 50)
    pairs = plain.largest_per_row(Encoder(x, W, b, 8), 4)
    assert torch.equal(pairs.to_dense() != 0, reference.per_row(pre, 4))


def test_few_candidates_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of a real SAE, of unit rows: hardly more than are selected, even for TF32."""
    computed = []

    def counted(g: Tensor, W: Tensor, row: Tensor, latent: Tensor) -> Tensor:
        computed.append(len(row))
        return dot_products(g, W, row, latent)

    monkeypatch.setattr(screening, "dot_products", counted)
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(n, 256, generator=generator) for n in (64, 8192))
    x, W = x / x.norm(dim=1, keepdim=True), W / W.norm(dim=1, keepdim=True)
    plain.largest_per_row(Encoder(x, W, torch.zeros(8192)), 32)
    assert 64 * 32 <= sum(computed) < 1.05 * 64 * 32
    computed.clear()
    plain.largest_per_latent(Encoder(x, W, torch.zeros(8192)), torch.arange(8192) % 9)
    assert 8192 * 4 - 9 <= sum(computed) < 1.1 * 8192 * 4
    computed.clear()
    monkeypatch.setattr(screening, "_precisions", lambda: ("tf32",))
    plain.largest_per_row(Encoder(x, W, torch.zeros(8192)), 32)
    assert sum(computed) < 1.5 * 64 * 32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """float64 obeys the bounds; for half precision there are none, so nothing is left out."""
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(size, generator=generator).to(dtype) for size in ((20, 8), (50, 8), (50,)))
    assert (product_error(CPU, dtype, 8) == torch.inf) == (dtype == torch.float16)
    every = Pairs.from_dense(torch.ones(20, 50))
    pre = (plain.sddmm(every, x, W) + b[every.latent]).view(20, 50)
    pairs = plain.largest_per_row(Encoder(x, W, b, 8), 4)
    assert pairs.value.dtype == dtype
    assert torch.equal(pairs.to_dense() != 0, reference.per_row(pre, 4))
    pairs = plain.largest_per_latent(Encoder(x, W, b, 8), torch.full((50,), 3))
    assert torch.equal(pairs.to_dense() != 0, reference.per_latent(pre, torch.full((50,), 3)))
