"""Two processes that hold half of the latents each find all pairs that are among the largest of a row."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from saecache.train.backends.compiled.backend import sddmm, search_rows
from saecache.train.backends.compiled.selection import row_search
from saecache.train.backends.sources import Encoder
from saecache.train.pairs import Pairs
from saecache.train.selection import reference
from saecache.train.selection.errors import NonFiniteError

CHEAPEST_PRODUCT = "saecache.train.backends.compiled.selection.scored_blocks.cheapest_product"
ROWS, LATENTS, WIDTH, BLOCK_ROWS = 50, 5000, 24, 8
HALF = LATENTS // 2

Factors = tuple[Tensor, Tensor, Tensor]


def random() -> Factors:
    generator = torch.Generator().manual_seed(0)
    sizes = ((ROWS, WIDTH), (LATENTS, WIDTH), (LATENTS,))
    x, W, b = (torch.randn(*size, generator=generator) for size in sizes)
    return x, W, b


def ties() -> Factors:
    x, W, b = (t.round().clamp(-1, 1) for t in random())
    return x, W, b


def all_in_one_half() -> Factors:
    """The other process's leaders are far too low to be a useful bound."""
    x, W, b = random()
    b[:HALF] += 100
    return x, W, b


def loose_bounds() -> Factors:
    x, W, b = random()
    common = torch.linspace(1, 3, WIDTH)
    return 30 * common + x, torch.logspace(-2, 2, LATENTS)[:, None] * (common + 0.1 * W), b


def both(factors: Factors, k: int) -> list[Pairs]:
    """What the two processes find, each in a thread."""
    x, W, b = factors
    halves = [Encoder(x, W[own], b[own], BLOCK_ROWS) for own in (slice(HALF), slice(HALF, None))]
    told: dict[int, Tensor] = {}
    barrier = threading.Barrier(2, timeout=600)

    def find(rank: int) -> Pairs:
        def agree(own: Tensor) -> Tensor:
            told[rank] = own
            barrier.wait()
            least = torch.minimum(told[0], told[1])
            barrier.wait()
            return least

        with search_rows(halves[rank], k, -(-k // 2)) as search:
            return search(agree)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(find, range(2)))


@pytest.fixture(autouse=True)
def several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_search, "PIECE_BLOCKS", 2)


@pytest.mark.parametrize("k", [1, 7, 20, 60])
@pytest.mark.parametrize("product", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("case", [random, ties, all_in_one_half, loose_bounds])
def test_every_pair_among_the_largest_is_found(case, product, k, monkeypatch) -> None:
    monkeypatch.setattr(CHEAPEST_PRODUCT, lambda *_: product)
    x, W, b = case()
    every = Pairs.from_dense(torch.ones(ROWS, LATENTS))
    exact = (sddmm(every, x, W) + b[every.latent]).view(ROWS, LATENTS)
    lacking = reference.per_row(exact, k)
    for found, first in zip(both((x, W, b), k), (0, HALF), strict=True):
        assert found.num_rows == ROWS
        assert int(found.row_ptr.diff().max()) <= k
        assert torch.equal(found.value, exact[found.rows(), found.latent + first])
        lacking[found.rows(), found.latent + first] = False
    assert not bool(lacking.any())


@pytest.mark.parametrize("product", ["float32", "bfloat16", "int8"])
def test_few_others_are_found(product, monkeypatch) -> None:
    monkeypatch.setattr(CHEAPEST_PRODUCT, lambda *_: product)
    assert sum(map(len, both(random(), 20))) < 1.6 * ROWS * 20  # k of each process would be 2


def test_a_number_that_is_not_finite_is_found_on_entry() -> None:
    x, W, b = random()
    b[3] = torch.nan
    with pytest.raises(NonFiniteError), search_rows(Encoder(x, W, b), 8, 4):
        pytest.fail("the search should not start")
