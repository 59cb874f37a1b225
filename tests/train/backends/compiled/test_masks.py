"""Masks of a chunk of keys against a bound."""

import numpy as np
import pytest

from saecache.train.backends.compiled.bits import MASK_KEYS, at_least, lowest, without_lowest
from saecache.train.backends.compiled.compile import compiled
from saecache.train.backends.compiled.selection.scan import CHUNK

SMALLEST, LARGEST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


@compiled
def places(keys, bound, found):
    n = 0
    mask = at_least(keys, bound)
    while mask != 0:
        found[n] = lowest(mask)
        n += 1
        mask = without_lowest(mask)
    return n


def reaching(keys, bound):
    found = np.empty(MASK_KEYS, np.int64)
    return found[: places(keys, bound, found)].tolist()


def test_a_chunk_is_one_mask():
    assert CHUNK == MASK_KEYS


@pytest.mark.parametrize("bound", [SMALLEST, -1, 0, 5, LARGEST])
def test_one_bound_for_all(bound):
    keys = np.random.default_rng(0).integers(-8, 8, MASK_KEYS).astype(np.int32)
    keys[[0, 17, 63]] = SMALLEST, LARGEST, bound
    assert reaching(keys, np.int32(bound)) == np.flatnonzero(keys >= bound).tolist()


def test_a_bound_for_each():
    draw = np.random.default_rng(1)
    bounds = draw.integers(-4, 4, 5 * MASK_KEYS).astype(np.int32)
    for start in range(0, len(bounds), MASK_KEYS):
        keys = draw.integers(-4, 4, MASK_KEYS).astype(np.int32)
        part = bounds[start : start + MASK_KEYS]
        assert reaching(keys, part) == np.flatnonzero(keys >= part).tolist()


@pytest.mark.parametrize("place", range(MASK_KEYS))
def test_every_place(place):
    keys = np.zeros(MASK_KEYS, np.int32)
    keys[place] = 1
    assert reaching(keys, np.int32(1)) == [place]
