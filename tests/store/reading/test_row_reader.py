"""Batch memory that is used again: never while somebody still looks at it."""

import torch

from saecache.store.reading.row_reader import BufferPool


def test_memory_comes_back_only_when_nothing_uses_it() -> None:
    pool = BufferPool()
    tensor = pool.take(4, 3, torch.float32)
    tensor.fill_(1)
    address, view = tensor.data_ptr(), tensor[1:].t()
    del tensor
    assert pool.take(4, 3, torch.float32).data_ptr() != address  # the view still holds it
    assert (view == 1).all()
    del view
    addresses = {pool.take(4, 3, torch.float32).data_ptr() for _ in range(3)}
    kept = [pool.take(4, 3, torch.float32) for _ in range(6)]
    assert address in addresses | {tensor.data_ptr() for tensor in kept}


def test_memory_is_given_in_any_type_and_size() -> None:
    pool = BufferPool()
    for rows, dtype in ((2, torch.bfloat16), (5, torch.float64), (1, torch.float32), (0, torch.float32)):
        tensor = pool.take(rows, 3, dtype)
        assert (tensor.shape, tensor.dtype) == ((rows, 3), dtype)
        tensor.fill_(1)
