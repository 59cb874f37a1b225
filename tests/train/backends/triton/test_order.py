"""Order statistics by radix."""

import pytest
import torch

from saecache.train.backends.triton.order import among_largest, nth_largest
from saecache.train.selection import reference


@pytest.mark.parametrize("n", [1, 2, 300, 649, 650])
def test_among_largest(n: int) -> None:
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
    chosen = among_largest(values, count, n)
    assert torch.equal(chosen[:650], reference.largest(first + 0.0, n))
    assert not bool(chosen[650:].any())


def test_numbers_next_to_each_other_are_told_apart() -> None:
    values = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)) * torch.ones(9)
    values[4] = 1.0
    assert float(nth_largest(values, torch.tensor([9]), 9)[0]) == 1.0
    assert float(nth_largest(values, torch.tensor([9]), 8)[0]) > 1.0
