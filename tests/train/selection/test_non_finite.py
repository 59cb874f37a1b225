"""NaN is noticed, whatever it would have compared as."""

import pytest
import torch

from saecache.train.backends.compiled.kernels_old import encode_blocks
from saecache.train.backends.dispatch import only_torch
from saecache.train.selection import select_per_batch, select_per_latent, select_per_row, select_threshold
from saecache.train.selection.errors import NonFiniteError

RULES = {
    "per_row": lambda blocks: select_per_row(blocks, 20, 300, 2),
    "per_batch": lambda blocks: select_per_batch(blocks, 20, 300, 40),
    "per_latent": lambda blocks: select_per_latent(blocks, 20, 300, torch.full((300,), 1)),
    "threshold": lambda blocks: select_threshold(blocks, 20, 300, 0.5),
}
FACTORS = {"x": (20, 8), "W": (300, 8), "b": (300,)}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


def factors(name: str, bad: float) -> list[torch.Tensor]:
    tensors = {key: torch.randn(shape) for key, shape in FACTORS.items()}
    tensors[name][7] = bad
    return list(tensors.values())


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize(("name", "where"), [("x", "row 7"), ("W", "latent 7"), ("b", "bias of latent 7")])
def test_in_the_factors(rule, name, where, bad):
    with pytest.raises(NonFiniteError, match=where):
        rule(encode_blocks(*factors(name, bad), block_rows=8))


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan])
def test_in_given_blocks(rule, bad):
    pre = torch.randn(20, 300)
    pre[7, 299] = bad
    blocks = lambda: iter([(0, pre[:5]), (5, pre[5:])])  # noqa: E731
    with pytest.raises(NonFiniteError, match="row 7, latent 299, is NaN"):
        rule(blocks)
    with only_torch(), pytest.raises(NonFiniteError, match="row 7, latent 299, is NaN"):
        rule(blocks)


def test_overflow(rule):
    x, W, b = (torch.randn(shape) for shape in FACTORS.values())
    with pytest.raises(NonFiniteError, match="can overflow"):
        rule(encode_blocks(5e18 * x.sign(), 5e18 * W.sign(), b, block_rows=8))


def test_given_infinities_are_numbers():
    pre = torch.randn(3, 300)
    pre[0, 10], pre[1] = torch.inf, -torch.inf
    pairs = select_per_row(lambda: iter([(0, pre)]), 3, 300, 2)
    assert 10 in pairs.latent[:2].tolist()
    assert pairs.latent[2:4].tolist() == [0, 1]
