"""Dead latents are counted in rows."""

import pytest
import torch

from saecache.train.engine.trainee import count_rows, dead_latents


@pytest.mark.parametrize("batch_rows", [10, 25, 50])
def test_dead_does_not_depend_on_the_batch_size(batch_rows: int) -> None:
    since = torch.zeros(2, dtype=torch.int64)
    for _ in range(100 // batch_rows):
        count_rows(since, torch.tensor([0, 1]), batch_rows)
    assert since.tolist() == [100, 0]
    assert dead_latents(since, 100).tolist() == [True, False]
    assert dead_latents(since, 101).tolist() == [False, False]
