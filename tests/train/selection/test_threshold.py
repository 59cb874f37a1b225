import pytest
import torch

from saecache.train.selection import reference


def per_latent_thresholds() -> torch.Tensor:
    thresholds = torch.linspace(-3, 3, 700)
    thresholds[::10] = torch.inf
    thresholds[1::10] = -torch.inf
    return thresholds


@pytest.mark.parametrize(
    "threshold", [1.5, torch.tensor(24.0), per_latent_thresholds()], ids=["number", "tensor", "per latent"]
)
def test_equals_the_definition(source, marked, threshold):
    pairs = source.pre_activations.above(threshold)
    assert torch.equal(marked(pairs), reference.threshold(source.pre, threshold))
    assert torch.equal(pairs.value, source.pre[pairs.rows(), pairs.latent])


def test_all_and_none(make_source, factors, marked):
    source = make_source("bfloat16", factors)
    assert bool(marked(source.pre_activations.above(-torch.inf)).all())
    assert len(source.pre_activations.above(torch.inf)) == 0


def test_equal_to_the_threshold_is_not_above_it(source, marked):
    threshold = float(source.pre[5, 5])
    pairs = source.pre_activations.above(threshold)
    assert torch.equal(marked(pairs), source.pre > threshold)
