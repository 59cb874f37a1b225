from types import SimpleNamespace

import pytest
import torch

from saecache.train.backends.sources import Encoder, block_bytes


def test_blocks_are_the_pre_activations_in_one_buffer(normal):
    x, W, b = normal(50, 20), normal(90, 20), normal(90)
    encoder = Encoder(x, W, b, block_rows=16)
    for _ in range(2):  # each call starts again
        seen, places = [], set()
        for first_row, pre in encoder.blocks():
            assert first_row == 16 * len(seen)
            seen.append(pre.clone())
            places.add(pre.data_ptr())
        torch.testing.assert_close(torch.cat(seen), x @ W.T + b, rtol=1e-4, atol=1e-4)
        assert [len(block) for block in seen] == [16, 16, 16, 2]
        assert len(places) == 1


def test_two_streams_at_a_time_do_not_share_a_buffer(normal):
    x, W, b = normal(50, 20), normal(90, 20), normal(90)
    first, second = Encoder(x, W, b, 10).blocks(), Encoder(-x, W, b, 10).blocks()
    for (_, a), (_, c) in zip(first, second, strict=True):
        torch.testing.assert_close(a + c, (2 * b).expand(10, 90), rtol=1e-4, atol=1e-4)


def test_wrong_shapes(normal):
    with pytest.raises(ValueError, match=r"x_centered must be \[B, 20\], got \(50, 21\)"):
        Encoder(normal(50, 21), normal(90, 20), normal(90))
    with pytest.raises(ValueError, match=r"b_enc must be \[90\], got \(91,\)"):
        Encoder(normal(50, 20), normal(90, 20), normal(91))
    with pytest.raises(ValueError, match="block_rows must be at least 1, got 0"):
        Encoder(normal(50, 20), normal(90, 20), normal(90), block_rows=0)


@pytest.mark.parametrize(("gigabytes", "mebibytes"), [(80, 1024), (141, 2048), (24, 256), (40, 512)])
def test_blocks_are_sized_for_the_device(monkeypatch, gigabytes, mebibytes):
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = torch.device("cuda", gigabytes)  # a GPU for each case: a size is computed once
    assert block_bytes(device) == mebibytes << 20
    assert block_bytes(torch.device("cpu")) == 32 << 20


def test_weights_stay_the_same_object(normal):
    """So that a backend can keep something of them from step to step."""
    W = normal(90, 20)
    assert Encoder(normal(50, 20), W, normal(90)).W_enc is W
    assert Encoder(normal(50, 20), normal(90, 40)[:, ::2], normal(90)).W_enc.is_contiguous()
