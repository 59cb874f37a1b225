"""Neither the number of threads nor the size of the blocks changes a bit."""

import pytest
import torch

from saecache.train.backends.compiled.kernels_old import encode_blocks
from saecache.train.selection import select_per_batch, select_per_latent, select_per_row, select_threshold


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("product", ["float32", "bfloat16", "int8"])
def test_same_bits(threads, monkeypatch, product):
    monkeypatch.setattr(SCREEN_PRODUCT, lambda *_: product)
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(shape, generator=generator) for shape in ((200, 16), (2100, 16), (2100,)))
    seen = []
    for num_threads, block_rows in ((1, 200), (2, 64), (3, 33), (3, 7)):
        threads(num_threads)
        blocks = encode_blocks(x, W, b, block_rows)
        seen.append(
            [
                select_per_row(blocks, 200, 2100, 3),
                select_per_batch(blocks, 200, 2100, 600),
                select_per_latent(blocks, 200, 2100, torch.arange(2100) % 3),
                select_threshold(blocks, 200, 2100, 10.0),
            ]
        )
    for other in seen[1:]:
        for pairs, expected in zip(other, seen[0], strict=True):
            assert torch.equal(pairs.row_ptr, expected.row_ptr)
            assert torch.equal(pairs.latent, expected.latent)
            assert torch.equal(pairs.value, expected.value)
