"""The one FVU: against its definition, for any split into blocks, and where the mean dwarfs the spread."""

import pytest
import torch

from saecache.common.fvu import FVU, RowVariance, fvu, sum_of_squares


def rows(mean: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 7, generator=generator, dtype=torch.float64) + mean
    return x, x + 0.1 * torch.randn(400, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e7])
@pytest.mark.parametrize("block", [1, 64, 400])
def test_blocks_give_the_definition(mean: float, block: int) -> None:
    x, reconstruction = rows(mean)
    found = FVU()
    for start in range(0, 400, block):
        found.add(x[start : start + block], reconstruction[start : start + block])
    expected = (reconstruction - x).square().sum() / (x - x.mean(0)).square().sum()
    assert found.value() == pytest.approx(expected.item(), rel=1e-9)
    assert found.num_rows == 400


def test_the_error_is_taken_in_float64() -> None:
    x, _ = rows(1e4)
    x = x.float()
    reconstruction = x.double() + 1e-5  # float32 has no numbers that near to each other here
    found = FVU()
    found.add(x, reconstruction)
    assert found.squared_error == pytest.approx(x.numel() * 1e-10, rel=1e-4)


def test_nothing_to_divide_by_is_no_figure() -> None:
    found = FVU()
    assert found.value() is None
    found.add(torch.zeros(0, 4), torch.zeros(0, 4))
    assert found.value() is None
    found.add(torch.ones(3, 4), torch.zeros(3, 4))
    assert found.value() is None
    assert fvu(1.0, 0.0) is None
    with pytest.raises(ValueError, match=r"x is \(2, 4\), its reconstruction \(2, 3\)"):
        found.add(torch.ones(2, 4), torch.ones(2, 3))


def test_the_variance_continues_from_its_state() -> None:
    x, _ = rows()
    whole, first, second = RowVariance(7), RowVariance(7), RowVariance(7)
    whole.add(x)
    first.add(x[:100])
    for name, tensor in second.tensors().items():
        tensor.copy_(first.tensors()[name])
    second.add(x[100:])
    assert second.total() == pytest.approx(whole.total(), rel=1e-12)
    assert whole.total() == pytest.approx((x - x.mean(0)).square().sum().item(), rel=1e-9)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    x = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0))
    before, sums = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums.append(sum_of_squares(x).item())
    finally:
        torch.set_num_threads(before)
    assert sums[0] == sums[1]
