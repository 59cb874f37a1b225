"""Large tensors in huge pages: the same values, in memory of their own, where the system has such pages."""

import mmap

import pytest
import torch

from saecache.train.backends import huge_pages
from saecache.train.backends.huge_pages import HUGE_PAGE_BYTES, SMALLEST_BYTES

WIDTH = 512
ROWS = SMALLEST_BYTES // (4 * WIDTH)
linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages to ask for")


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_large_tensor_starts_with_a_huge_page(dtype: torch.dtype) -> None:
    like = torch.ones(4 * ROWS, WIDTH, dtype=dtype)
    found = huge_pages.zeros_like(like)
    assert (found.shape, found.dtype, found.is_contiguous()) == (like.shape, dtype, True)
    assert found.data_ptr() % HUGE_PAGE_BYTES == 0
    assert not found.any()
    found += 1
    assert torch.equal(found, like)


@linux
def test_a_tensor_is_moved_with_its_values_and_remains_itself() -> None:
    tensor = torch.randn(ROWS, WIDTH)
    other_name, expected = tensor, tensor.clone()
    huge_pages.move(tensor)
    assert tensor.data_ptr() % HUGE_PAGE_BYTES == 0
    assert torch.equal(other_name, expected)
    tensor[0] = 7
    assert bool((other_name[0] == 7).all())


def test_small_tensors_and_those_of_devices_stay_where_torch_puts_them() -> None:
    small = torch.randn(3, 5)
    before = small.data_ptr()
    huge_pages.move(small)
    assert small.data_ptr() == before
    assert torch.equal(huge_pages.zeros_like(small), torch.zeros(3, 5))
    there = torch.empty(ROWS, WIDTH, device="meta")
    huge_pages.move(there)
    assert huge_pages.zeros_like(there).is_meta
    assert huge_pages.empty_bytes(SMALLEST_BYTES, torch.device("meta")).is_meta


def test_without_huge_pages_torch_gives_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without them answers with an error, other systems have no such advice."""
    for advice in (None, 12345):
        monkeypatch.setattr(huge_pages, "_ADVICE", advice)
        tensor = torch.randn(ROWS, WIDTH)
        before, expected = tensor.data_ptr(), tensor.clone()
        huge_pages.move(tensor)
        assert tensor.data_ptr() == before
        assert torch.equal(tensor, expected)
        assert torch.equal(huge_pages.zeros_like(tensor), torch.zeros(ROWS, WIDTH))
        assert huge_pages.empty_bytes(SMALLEST_BYTES, torch.device("cpu")).numel() == SMALLEST_BYTES
