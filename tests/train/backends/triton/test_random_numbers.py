"""Counter-based random numbers: the same bits from the kernel and from plain torch."""

import pytest
import torch

from saecache.train.backends.triton.random_numbers import random_uniform, random_uniform_torch


@pytest.mark.parametrize("num_latents", [1, 6, 1030])
def test_the_kernel_gives_the_bits_of_plain_torch(num_latents: int) -> None:
    for seed, batch in ((0, 0), (2**64 - 1, 2**40 + 3)):
        got = random_uniform(seed, batch, 5, 3, num_latents, "cpu")
        assert torch.equal(got, random_uniform_torch(seed, batch, 5, 3, num_latents))


def test_neither_blocks_of_rows_nor_the_number_of_latents_matter() -> None:
    whole = random_uniform_torch(3, 4, 0, 10, 40)
    assert torch.equal(random_uniform_torch(3, 4, 6, 4, 17), whole[6:, :17])


def test_philox_is_the_published_one() -> None:
    """Known answers of Random123: counter and key of zeros, ten rounds."""
    words = (random_uniform_torch(0, 0, 0, 1, 4) * 2.0**23 - 0.5).long()[0].tolist()
    assert words == [0x6627E8D5 >> 9, 0xE169C58D >> 9, 0xBC57AC4C >> 9, 0x9B00DBD8 >> 9]


def test_numbers_are_uniform_and_differ() -> None:
    first = random_uniform_torch(1, 2, 0, 100, 1000)
    assert float(first.min()) > 0 and float(first.max()) < 1
    assert abs(float(first.mean()) - 0.5) < 0.005
    for other in (random_uniform_torch(2, 2, 0, 100, 1000), random_uniform_torch(1, 3, 0, 100, 1000)):
        assert float((first == other).float().mean()) < 1e-3


def test_seeds_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="seed must be from 0"):
        random_uniform(-1, 0, 0, 1, 1, "cpu")
