"""Neither the number of threads nor the size of the blocks changes a bit."""

import pytest
import torch

from saecache.train.backends.sources import Encoder
from saecache.train.selection.pre_activations import PreActivations

CHEAPEST_PRODUCT = "saecache.train.backends.compiled.selection.scored_blocks.cheapest_product"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("product", ["float32", "bfloat16", "int8"])
def test_same_bits(threads, monkeypatch, product):
    monkeypatch.setattr(CHEAPEST_PRODUCT, lambda *_: product)
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(shape, generator=generator) for shape in ((200, 16), (2100, 16), (2100,)))
    seen = []
    for num_threads, block_rows in ((1, 200), (2, 64), (3, 33), (3, 7)):
        threads(num_threads)
        asked = PreActivations(Encoder(x, W, b, block_rows), num_latents=2100)
        seen.append(
            [
                asked.largest_per_row(3),
                asked.largest_of_batch(600),
                asked.largest_per_latent(torch.arange(2100) % 3),
                asked.above(10.0),
            ]
        )
    for other in seen[1:]:
        for pairs, expected in zip(other, seen[0], strict=True):
            assert torch.equal(pairs.row_ptr, expected.row_ptr)
            assert torch.equal(pairs.latent, expected.latent)
            assert torch.equal(pairs.value, expected.value)
