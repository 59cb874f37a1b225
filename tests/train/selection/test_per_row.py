import pytest
import torch

from saecache.train.selection import reference


@pytest.mark.parametrize("k", [2, 30, 699])
def test_equals_the_definition(source, marked, k):
    pairs = source.pre_activations.largest_per_row(k)
    assert torch.equal(marked(pairs), reference.per_row(source.pre, k))
    assert torch.equal(pairs.value, source.pre[pairs.rows(), pairs.latent])


def test_differs_from_float64_in_near_ties_only(factors, make_source, marked):
    x, W, b = (t.double() for t in factors)
    true = x @ W.T + b
    pairs = make_source("bfloat16", factors).pre_activations.largest_per_row(10)
    least = true.topk(10).values[:, -1:]
    off = (true - least).abs()[marked(pairs) != reference.per_row(true, 10)]
    rounding = 24 * 2.0**-23 * x.norm(dim=1).max() * W.norm(dim=1).max() + 2.0**-22 * true.abs().max()
    assert bool((off <= rounding).all())


@pytest.mark.parametrize("kind", ["given", "float32"])
def test_no_rows(make_source, kind):
    source = make_source(kind, (torch.zeros(0, 4), torch.zeros(9, 4), torch.zeros(9)))
    pairs = source.pre_activations.largest_per_row(3)
    assert (pairs.num_rows, pairs.num_latents, len(pairs)) == (0, 9, 0)


@pytest.mark.parametrize("k", [1, 700])
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "given"])
def test_k_of_one_and_of_all(factors, make_source, marked, kind, k):
    source = make_source(kind, factors)
    assert torch.equal(marked(source.pre_activations.largest_per_row(k)), reference.per_row(source.pre, k))


@pytest.mark.parametrize("k", [0, 701])
def test_impossible_k(make_source, k):
    factors = torch.zeros(37, 24), torch.zeros(700, 24), torch.zeros(700)
    with pytest.raises(ValueError, match="k must be from 1 to the number of latents, 700"):
        make_source("given", factors).pre_activations.largest_per_row(k)


@pytest.mark.parametrize("rounded", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize("k", [3, 9])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_with_many_chunks_for_each_selected_latent(make_source, marked, kind, k, rounded):
    """Here the chunks' leaders are computed first; with ties there are more candidates than room."""
    generator = torch.Generator().manual_seed(0)
    x, W, b = (torch.randn(*size, generator=generator) for size in ((50, 24), (2500, 24), (2500,)))
    if rounded:
        x, W, b = (t.round().clamp(-1, 1) for t in (x, W, b))
    source = make_source(kind, (x, W, b))
    pairs = source.pre_activations.largest_per_row(k)
    assert torch.equal(marked(pairs), reference.per_row(source.pre, k))
    assert torch.equal(pairs.value, source.pre[pairs.rows(), pairs.latent])
