"""The first rows of a cache: fewer rows, everything else as in the whole."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from saecache.store import UsageError, open_cache

HOOK = "resid_post.1"


def test_the_head_has_the_first_rows_everywhere(cache_path: Path) -> None:
    whole, head = open_cache(cache_path), open_cache(cache_path, rows=100)
    assert (len(head), head.num_rows()) == (100, 100)
    assert head.num_rows("heldout") == whole.num_rows("heldout") > 0
    assert head.fingerprint == whole.fingerprint
    assert torch.equal(head.rows(HOOK, range(100)), whole.rows(HOOK, range(100)))
    assert np.array_equal(head.token_index()[:], whole.token_index()[:100])
    assert len(head.token_index()[:1000]) == 100
    assert torch.equal(head.rows(HOOK, [-1]), whole.rows(HOOK, [99]))
    for expected, got in zip(whole.locate(range(100)), head.locate(range(100)), strict=True):
        assert np.array_equal(expected, got)
    heldout = [torch.cat(list(cache.batches(HOOK, 10, split="heldout"))) for cache in (whole, head)]
    assert torch.equal(*heldout)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_of_the_head_is_each_of_its_rows_once(cache_path: Path, epoch: int) -> None:
    whole, head = open_cache(cache_path), open_cache(cache_path).head(101)
    got = torch.cat(list(head.batches(HOOK, 10, epoch=epoch)))
    first = whole.rows(HOOK, range(101))
    assert torch.equal(got, torch.cat(list(whole.batches(HOOK, 10, epoch=epoch, num_rows=101))))
    assert torch.equal(got.sort(dim=0).values, first.sort(dim=0).values)
    assert torch.equal(got, first) == (epoch == 0)
    assert head.num_batches(10) == 11


def test_rows_beyond_the_head_are_not_there(cache_path: Path) -> None:
    head = open_cache(cache_path, rows=100)
    with pytest.raises(IndexError, match="has 100 rows"):
        head.rows(HOOK, [100])
    with pytest.raises(IndexError, match="has 100 rows"):
        head.locate([100])
    with pytest.raises(UsageError, match="from 1 to the 100 rows"):
        head.batches(HOOK, 10, num_rows=101)


def test_scaled_rows_do_not_depend_on_how_many_there_are(cache_path: Path) -> None:
    whole, head = open_cache(cache_path), open_cache(cache_path, rows=30)
    assert torch.equal(
        head.rows(HOOK, [3], normalization="scale"), whole.rows(HOOK, [3], normalization="scale")
    )


def test_heads_of_heads_and_in_other_processes(cache_path: Path) -> None:
    head = open_cache(cache_path, rows=100).head(40)
    assert len(head) == len(pickle.loads(pickle.dumps(head))) == 40


@pytest.mark.parametrize("rows", [0, -1, 10**6])
def test_heads_that_cannot_be(cache_path: Path, rows: int) -> None:
    with pytest.raises(UsageError, match="expected to use from 1 to the"):
        open_cache(cache_path, rows=rows)


def test_a_cache_says_what_it_is(cache_path: Path) -> None:
    """In a notebook it was an address."""
    shown = repr(open_cache(cache_path, rows=100))
    assert str(cache_path) in shown and "100 training and" in shown and f"{HOOK} (" in shown


@pytest.mark.parametrize("rows", ["10", 1.5])
def test_rows_that_are_no_number_are_refused(cache_path: Path, rows: object) -> None:
    with pytest.raises(UsageError, match="rows"):
        open_cache(cache_path, rows=rows)  # type: ignore[arg-type]
