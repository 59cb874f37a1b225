"""Random numbers are Philox's, uniform, and independent of each other; backends for the CPU draw the same.

Every bound on a statistic is exceeded by chance in one of a thousand sequences or fewer; the sequences are
fixed.
"""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor

from saecache.train.backends.choice import load_backend
from saecache.train.variants.base.rows import RandomStream, Rows

Draw = Callable[..., Tensor]
LARGEST_DEVIATION = 3.5  # standard deviations


@pytest.fixture(params=["plain", "compiled"])
def draw(request: pytest.FixtureRequest) -> Draw:
    """``draw(rows, latents, seed=0, batch=0, row0=0)``: float32 [rows, latents]."""
    backend = load_backend(request.param)
    return lambda rows, latents, seed=0, batch=0, row0=0: backend.random_uniform(
        seed, batch, row0, rows, latents, torch.device("cpu")
    )


def rows_of(number: int = 0, seed: int = 0) -> Rows:
    return Rows(x_centered=torch.zeros(1, 1), parameters={}, state={}, number=number, seed=seed)


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Philox 4x32 with ten rounds in Python's whole numbers: four words of 32 bits."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


ONES = 2**32 - 1
KNOWN_ANSWERS = [  # of Random123: counter, key, words
    ((0, 0, 0, 0), (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ((ONES,) * 4, (ONES,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_is_the_published_one(
    draw: Draw, counter: tuple[int, ...], key: tuple[int, ...], words: list[int]
) -> None:
    assert philox(counter, key) == words
    _, row, batch0, batch1 = counter
    numbers = draw(1, 12, key[0] | key[1] << 32, batch0 | batch1 << 32, row)
    expected = [word >> 9 for group in range(3) for word in philox((group, *counter[1:]), key)]
    assert (numbers[0] * 2.0**23 - 0.5).long().tolist() == expected


@pytest.mark.parametrize("latents", [1, 3, 4, 6, 1030])
@pytest.mark.parametrize(("seed", "batch"), [(0, 0), (2**64 - 1, 2**40 + 3)])
def test_every_backend_draws_the_same_bits(latents: int, seed: int, batch: int) -> None:
    plain, compiled = (load_backend(name).random_uniform for name in ("plain", "compiled"))
    for row0, rows in ((0, 0), (5, 3), (2**31, 70)):
        numbers = plain(seed, batch, row0, rows, latents, "cpu")
        assert numbers.shape == (rows, latents) and numbers.dtype == torch.float32
        assert torch.equal(compiled(seed, batch, row0, rows, latents, "cpu"), numbers)


def test_neither_blocks_of_rows_nor_the_number_of_latents_matter(draw: Draw) -> None:
    whole = draw(10, 40, 3, 4)
    assert torch.equal(draw(4, 17, 3, 4, 6), whole[6:, :17])


def test_seeds_out_of_range_are_refused(draw: Draw) -> None:
    for seed, batch in ((-1, 0), (2**64, 0), (0, -1), (0, 2**64)):
        with pytest.raises(ValueError, match=r"must be from 0 to 2\*\*64 - 1, got"):
            draw(1, 1, seed, batch)


def test_numbers_are_uniform(draw: Draw) -> None:
    numbers = draw(500, 2000, seed=11).double().flatten()
    n = len(numbers)
    assert float(numbers.min()) > 0 and float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 1 / 2) < LARGEST_DEVIATION * sqrt(1 / 12 / n)
    assert abs(float((numbers - 0.5).square().mean()) - 1 / 12) < LARGEST_DEVIATION * sqrt(1 / 180 / n)
    assert kolmogorov_smirnov(numbers) < 1.95
    for part in (draw(1, 4000, seed=5), draw(4000, 1, seed=5)):  # a single row, a single latent
        assert kolmogorov_smirnov(part.double().flatten()) < 1.95


def kolmogorov_smirnov(numbers: Tensor) -> float:
    """sqrt(n) times the largest distance from the uniform distribution; above 1.95 once in a thousand."""
    n = len(numbers)
    place = torch.arange(n + 1, dtype=torch.float64) / n
    ascending = numbers.sort().values
    return float(torch.maximum(place[1:] - ascending, ascending - place[:-1]).max()) * sqrt(n)


def test_neighbours_are_not_correlated(draw: Draw) -> None:
    """Of rows, latents, seeds, batches and streams."""
    numbers = draw(400, 1000, seed=7, batch=9)
    stream = 1 << 32
    for other in (
        draw(400, 1000, 7, 9, row0=1),
        draw(400, 1001, 7, 9)[:, 1:],
        draw(400, 1004, 7, 9)[:, 4:],
        draw(400, 1000, 8, 9),
        draw(400, 1000, 7 + stream, 9),
        draw(400, 1000, 7, 10),
        draw(400, 1000, 7, 9 + stream),
    ):
        assert not torch.equal(numbers, other)
        product = (numbers.double() - 0.5) * (other.double() - 0.5)
        correlation = 12 * float(product.mean())
        assert abs(correlation) < LARGEST_DEVIATION / sqrt(numbers.numel())


def test_streams_and_batches_and_seeds_draw_other_numbers() -> None:
    drawn = [
        rows_of(number, seed).random_uniform(stream, 0, 3, 50)
        for number in (0, 1)
        for seed in (0, 1, -1)
        for stream in RandomStream
    ]
    assert len(torch.stack(drawn).flatten(1).unique(dim=0)) == len(drawn) == 6 * len(RandomStream)
    assert torch.equal(drawn[0], rows_of().random_uniform(RandomStream.GATES, 0, 3, 50))


def test_orders_are_permutations_and_all_alike_probable() -> None:
    first = torch.stack([rows_of(number).random_order(RandomStream.POOL, 6) for number in range(3000)])
    assert torch.equal(first.sort(dim=1).values, torch.arange(6).expand(3000, 6))
    counts = torch.stack([torch.bincount(place, minlength=6) for place in first.T]).double()
    deviation = sqrt(3000 * 1 / 6 * 5 / 6)
    assert float((counts - 500).abs().max()) < 4 * deviation
