"""The kernel gives the bits of plain torch."""

import pytest
import torch

from saecache.train.backends.plain import random_numbers as plain
from saecache.train.backends.triton.random_numbers import random_uniform


@pytest.mark.parametrize("num_latents", [1, 6, 1030])
def test_the_kernel_gives_the_bits_of_plain_torch(num_latents: int) -> None:
    for seed, batch in ((0, 0), (2**64 - 1, 2**40 + 3)):
        got = random_uniform(seed, batch, 5, 3, num_latents, "cpu")
        assert torch.equal(got, plain.random_uniform(seed, batch, 5, 3, num_latents, "cpu"))


def test_seeds_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="seed must be from 0"):
        random_uniform(-1, 0, 0, 1, 1, "cpu")
