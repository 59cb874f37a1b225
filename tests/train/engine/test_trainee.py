"""The engine checks that a variant records its codes."""

import pytest
import torch

from saecache.testing.stepping import take_step
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.runs.initialisation import initial_parameters
from saecache.train.variants.base.rows import Batch
from saecache.train.variants.base.variant import Plan
from saecache.train.variants.topk import TopK


def test_codes_that_were_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(d_model=8, num_latents=32, batch_rows=16, num_steps=4)
    trainee = Trainee(TopK(k=4), plan, 0, OptimizerConfig(), initial_parameters(plan, 0, torch.zeros(8)))
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        take_step(trainee, x, 0, 1.0, 10**9)
        monkeypatch.setattr(Batch, "record", lambda *_: None)
        with pytest.raises(AssertionError, match=r"TopK recorded the codes of 0 of 16 rows: .* batch.record"):
            take_step(trainee, x, 1, 1.0, 10**9)
