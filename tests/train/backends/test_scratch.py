import torch

from saecache.train.backends.scratch import borrowed, release_scratch


def test_memory_is_used_again():
    release_scratch()
    with borrowed(10, 20, dtype=torch.float32) as first:
        place = first.data_ptr()
        assert first.shape == (10, 20)
        with borrowed(10, 20, dtype=torch.float32) as second:
            assert second.data_ptr() != place
    with borrowed(7, 3, dtype=torch.bfloat16) as smaller:
        assert smaller.dtype == torch.bfloat16


def test_a_larger_borrower_replaces_what_is_too_small():
    release_scratch()
    for size in (10, 100, 1000, 50):
        with borrowed(size, dtype=torch.float32) as buffer:
            place = buffer.data_ptr()
    with borrowed(1000, dtype=torch.float32) as buffer:
        assert buffer.data_ptr() == place, "one buffer, grown to the largest"


def test_an_error_returns_the_buffer():
    release_scratch()
    try:
        with borrowed(10, dtype=torch.float32) as buffer:
            place = buffer.data_ptr()
            raise KeyError
    except KeyError:
        pass
    with borrowed(10, dtype=torch.float32) as again:
        assert again.data_ptr() == place


def test_empty():
    with borrowed(0, 5, dtype=torch.float32) as buffer:
        assert buffer.shape == (0, 5)
