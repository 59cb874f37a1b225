"""NaN is reported, however it would compare."""

import pytest
import torch

from saecache.train.backends.choice import use_backend
from saecache.train.backends.sources import Encoder
from saecache.train.selection.errors import NonFiniteError
from saecache.train.selection.pre_activations import PreActivations

RULES = {
    "per_row": lambda asked: asked.largest_per_row(2),
    "per_batch": lambda asked: asked.largest_of_batch(40),
    "per_latent": lambda asked: asked.largest_per_latent(torch.full((300,), 1)),
    "threshold": lambda asked: asked.above(0.5),
}
FACTORS = {"x": (20, 8), "W": (300, 8), "b": (300,)}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


@pytest.fixture(params=["compiled", "plain"])
def backend(request):
    with use_backend(request.param):
        yield


def encoded(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> PreActivations:
    return PreActivations(Encoder(x, W, b, block_rows=8), num_latents=300)


def factors(name: str, bad: float) -> list[torch.Tensor]:
    tensors = {key: torch.randn(shape) for key, shape in FACTORS.items()}
    tensors[name][7] = bad
    return list(tensors.values())


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize(("name", "where"), [("x", "row 7"), ("W", "latent 7"), ("b", "bias of latent 7")])
@pytest.mark.usefixtures("backend")
def test_nan_in_the_factors(rule, name, where, bad):
    with pytest.raises(NonFiniteError, match=where):
        rule(encoded(*factors(name, bad)))


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan])
def test_nan_in_given_blocks(rule, bad, given):
    pre = torch.randn(20, 300)
    pre[7, 299] = bad
    asked = given(pre, 5, 15)
    with pytest.raises(NonFiniteError, match="row 7, latent 299, is NaN"):
        rule(asked)
    with use_backend("plain"), pytest.raises(NonFiniteError, match="row 7, latent 299, is NaN"):
        rule(asked)


@pytest.mark.usefixtures("backend")
def test_overflow(rule):
    x, W, b = (torch.randn(shape) for shape in FACTORS.values())
    with pytest.raises(NonFiniteError, match="can overflow"):
        rule(encoded(5e18 * x.sign(), 5e18 * W.sign(), b))


def test_infinite_scores_are_compared_as_numbers(given):
    pre = torch.randn(3, 300)
    pre[0, 10], pre[1] = torch.inf, -torch.inf
    pairs = given(pre, 3).largest_per_row(2)
    assert 10 in pairs.latent[:2].tolist()
    assert pairs.latent[2:4].tolist() == [0, 1]
