"""Order statistics by radix."""

import pytest
import torch

from saecache.train.backends.triton import order as module
from saecache.train.backends.triton.order import _digit_kernel, nth_largest


@pytest.mark.parametrize("n", [1, 2, 300, 649, 650])
def test_nth_largest(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat(
        [torch.randint(-5, 6, (300,), generator=generator) * 0.7, torch.randn(400, generator=generator)]
    )
    values = values[torch.randperm(700, generator=generator)].float()
    values[::50] = -0.0
    values[5], values[6] = torch.inf, -torch.inf
    first, count = values[:650], torch.tensor([650])
    least, equal = nth_largest(values, count, n)
    ordered = first.sort(descending=True).values
    assert float(least) == float(ordered[n - 1])
    assert int(equal) == n - int((first > least).sum())


def test_numbers_next_to_each_other_are_told_apart() -> None:
    values = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)) * torch.ones(9)
    values[4] = 1.0
    assert float(nth_largest(values, torch.tensor([9]), 9)[0]) == 1.0
    assert float(nth_largest(values, torch.tensor([9]), 8)[0]) > 1.0


def test_more_than_two_to_the_31_values_share_a_digit() -> None:
    """As in the histogram of a matrix of 65,536 rows and as many latents."""
    histogram, state = torch.zeros(2048, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    values, count = torch.ones(20), torch.tensor([20])
    digit = int(torch.tensor(1.0).view(torch.int32)) + 2**31 >> 21
    histogram[digit], histogram[digit + 1] = 2**32, 5
    first = {"SHIFT": 21, "WIDTH": 11, "N": 32}
    _digit_kernel[(1,)](values, count, 20, state, histogram, torch.zeros(1), 2**31 + 7, **first)
    assert state.tolist() == [digit << 21, 2**31 + 2, 0]
    assert not histogram.any(), "ready for the next digit"
    histogram[digit] = 2**32
    _digit_kernel[(1,)](values, count, 20, state.zero_(), histogram, torch.zeros(1), 2**32 + 20, **first)
    assert state.tolist() == [digit << 21, 2**32 + 20, 0]


def test_the_histogram_counts_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(module, "launch", lambda function, grid, *arguments, **_: seen.append(arguments))
    nth_largest(torch.ones(9), torch.tensor([9]), 1)
    assert seen[0][4].dtype == torch.int64
