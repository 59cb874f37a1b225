"""Processes that share latents and rows select what the plain definition selects from the whole matrix."""

import json
from pathlib import Path

import pytest
import torch

from saecache.train.backends.choice import backend_of
from saecache.train.pairs import Pairs
from saecache.train.selection import reference

from .processes import run
from .selecting import CANDIDATES, NUM_LATENTS, NUM_ROWS, TOTAL, K, counts, encoder, numbers

PROGRAM = str(Path(__file__).with_name("selecting.py"))


@pytest.mark.parametrize(("size", "row_groups", "first_rows"), [(2, 2, 5), (2, 1, 0), (4, 2, 3), (2, 2, 11)])
def test_a_grid_of_processes_selects_exactly(
    size: int, row_groups: int, first_rows: int, tmp_path: Path
) -> None:
    batch, latent = (torch.zeros(NUM_ROWS, NUM_LATENTS, dtype=torch.bool) for _ in range(2))
    sharing = size // row_groups  # processes that have the same rows
    largest = Pairs.to_dense(backend_of(encoder().W_enc).largest_per_row(encoder(), K))
    for rank, ended in enumerate(run(size, [PROGRAM, str(row_groups), str(first_rows)], tmp_path)):
        found = json.loads(ended.output)
        assert found["searches"] == (2 if sharing > 1 else 0)
        candidates, bounds, flags = 4 * K * found["rows"], 4 * found["rows"], 8 * 2  # docs/cluster.md
        assert found["sent"] <= (sharing - 1) * (candidates + bounds + flags)
        assert (found["sent"] > 0) == (sharing > 1)
        fails = rank // sharing == row_groups - 1  # those that share latents with the last process
        assert ("is NaN" in found["failed"]) == fails, found["failed"]
        for (row, one), value in zip(found["row"], found["values"], strict=True):
            assert largest[row, one] == value, "a pair that one process does not select, or selected twice"
            largest[row, one] = torch.nan
        for mask, places in ((batch, found["batch"]), (latent, found["latent"])):
            for row, one in places:
                assert not mask[row, one], "two processes have the same pair"
                mask[row, one] = True
        assert all(found["same"])
        assert (found["compared"] > 0) == (row_groups > 1)
        assert found["compared"] <= CANDIDATES + row_groups * NUM_ROWS  # docs/cluster.md: memory
    assert int(largest.isnan().sum()) == NUM_ROWS * K
    assert torch.equal(batch, reference.per_batch(numbers(), TOTAL))
    assert torch.equal(latent, reference.per_latent(numbers(), counts()))
