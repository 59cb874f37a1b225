from dataclasses import replace

import pytest
import torch

from saecache.train.selection import reference
from saecache.train.selection.pre_activations import HINT


@pytest.mark.parametrize("total", [1, 111, 37 * 700 - 1])
def test_equals_the_definition(source, marked, total):
    pairs = source.pre_activations.largest_of_batch(total)
    assert torch.equal(marked(pairs), reference.per_batch(source.pre, total))
    assert torch.equal(pairs.value, source.pre[pairs.rows(), pairs.latent])


def test_none_and_all(factors, make_source, marked):
    source = make_source("bfloat16", factors)
    assert len(source.pre_activations.largest_of_batch(0)) == 0
    assert bool(marked(source.pre_activations.largest_of_batch(37 * 700)).all())


def test_only_some_latents(source, marked):
    """The pool of Sampled-SAE: only some columns of the pre-activations take part."""
    asked, pool = source.pre_activations, torch.arange(0, 700, 3)
    if asked.scores is not None:
        pytest.skip("scores are made for all latents")
    encoder = asked.encoder
    W, b = encoder.W_enc[pool], encoder.b_enc[pool]
    some = replace(asked, encoder=replace(encoder, W_enc=W, b_enc=b), latents=pool)
    pairs = some.largest_of_batch(200)
    assert torch.equal(marked(pairs), reference.per_batch(source.pre, 200, torch.arange(700) % 3 == 0))


@pytest.mark.parametrize("hint", [-torch.inf, -100.0, 0.0, 100.0, torch.inf, torch.nan])
def test_no_hint_changes_the_result(make_source, factors, marked, hint):
    source = make_source("float32", factors)
    state = {HINT: torch.tensor(hint)}
    pairs = source.pre_activations.largest_of_batch(150, state)
    assert torch.equal(marked(pairs), reference.per_batch(source.pre, 150))


def test_the_hint_it_leaves_lets_enough_pairs_through(source):
    state = {}
    source.pre_activations.largest_of_batch(150, state)
    passing = int((source.pre >= state[HINT]).sum())
    assert passing >= 150


def test_the_hint_it_leaves_does_not_depend_on_the_one_it_found(make_source, factors):
    source = make_source("float32", factors)
    left = []
    for found in (-torch.inf, -3.0, 0.0, 0.5, 100.0):
        state = {HINT: torch.tensor(found)}
        source.pre_activations.largest_of_batch(150, state)
        left.append(float(state[HINT]))
    assert len(set(left)) == 1, "checkpoints hold the hint, so it must not depend on a process's rounding"


def test_too_many(make_source):
    factors = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(5)
    asked = make_source("given", factors).pre_activations
    with pytest.raises(ValueError, match="total must be from 0 to 20"):
        asked.largest_of_batch(21)
