"""Running ahead: order, errors, and threads that end."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from saecache.store.buffers import BufferPool
from saecache.store.prefetch import prefetch


def count_up_to(stop: int, made: list[int] | None = None, closed: list[bool] | None = None) -> Iterator[int]:
    try:
        for number in range(stop):
            if made is not None:
                made.append(number)
            yield number
    finally:
        if closed is not None:
            closed.append(True)


def test_items_come_in_order() -> None:
    assert list(prefetch(count_up_to(50))) == list(range(50))
    assert list(prefetch(count_up_to(0))) == []


def test_no_more_than_depth_is_made_ahead() -> None:
    made: list[int] = []
    items = prefetch(count_up_to(50, made), depth=3)
    next(items)
    time.sleep(0.2)
    assert 3 <= len(made) <= 5
    items.close()  # type: ignore[attr-defined]


def test_an_error_arrives_where_it_belongs() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise RuntimeError("in the thread")

    items = prefetch(source())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="in the thread"):
        next(items)


def test_an_abandoned_iterator_closes_its_source_and_thread() -> None:
    closed: list[bool] = []
    before = threading.active_count()
    items = prefetch(count_up_to(10**9, closed=closed))
    next(items)
    del items
    gc.collect()
    assert closed == [True]
    assert threading.active_count() == before


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
