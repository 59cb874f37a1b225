import pytest
import torch

from saecache.train.backends.compiled.selection.per_batch import HINT
from saecache.train.selection import reference, select_per_batch


@pytest.mark.parametrize("total", [1, 111, 37 * 700 - 1])
def test_equals_the_definition(source, marked, total):
    pairs = select_per_batch(source.blocks, 37, 700, total)
    assert torch.equal(marked(pairs), reference.per_batch(source.pre, total))
    assert torch.equal(pairs.value, source.pre[pairs.rows(), pairs.latent])


def test_none_and_all(factors, make_source, marked):
    source = make_source("bfloat16", factors)
    assert len(select_per_batch(source.blocks, 37, 700, 0)) == 0
    assert bool(marked(select_per_batch(source.blocks, 37, 700, 37 * 700)).all())


def test_only_allowed_latents(source, marked):
    allowed = torch.arange(700) % 3 == 0
    pairs = select_per_batch(source.blocks, 37, 700, 200, allowed=allowed)
    assert torch.equal(marked(pairs), reference.per_batch(source.pre, 200, allowed))
    assert bool(allowed[pairs.latent].all())


@pytest.mark.parametrize("hint", [-torch.inf, -100.0, 0.0, 100.0, torch.inf, torch.nan])
def test_no_hint_changes_the_result(make_source, factors, marked, hint):
    source = make_source("float32", factors)
    state = {HINT: torch.tensor(hint)}
    pairs = select_per_batch(source.blocks, 37, 700, 150, state)
    assert torch.equal(marked(pairs), reference.per_batch(source.pre, 150))


def test_the_hint_it_leaves_lets_enough_pairs_through(source):
    state = {}
    select_per_batch(source.blocks, 37, 700, 150, state)
    passing = int((source.pre >= state[HINT]).sum())
    assert passing >= 150


def test_the_hint_it_leaves_does_not_depend_on_the_one_it_found(make_source, factors):
    source = make_source("float32", factors)
    left = []
    for found in (-torch.inf, -3.0, 0.0, 0.5, 100.0):
        state = {HINT: torch.tensor(found)}
        select_per_batch(source.blocks, 37, 700, 150, state)
        left.append(float(state[HINT]))
    assert len(set(left)) == 1, "checkpoints hold it: a process's rounding may not reach it"


def test_too_many(make_source):
    factors = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(5)
    blocks = make_source("given", factors).blocks
    with pytest.raises(ValueError, match="total must be from 0 to 20"):
        select_per_batch(blocks, 4, 5, 21)
    with pytest.raises(ValueError, match="total must be from 0 to 4"):
        select_per_batch(blocks, 4, 5, 5, allowed=torch.arange(5) == 2)
