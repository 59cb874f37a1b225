"""The matrix of all pre-activations of a batch never exists."""

from pathlib import Path

import pytest
import torch

from saecache.testing.stepping import take_step
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

PLAN = Plan(d_model=32, num_latents=4096, batch_rows=16_384, num_steps=10)
ALL_PAIRS_BYTES = 4 * PLAN.batch_rows * PLAN.num_latents  # 256 MiB
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_bytes(key: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["topk", "batch_topk", "feature_choice"])
def test_a_step_needs_a_fraction_of_all_pairs(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(PLAN.num_latents, PLAN.d_model, generator=generator), dim=1)
    parameters = {
        "W_enc": W.clone(),
        "W_dec": W,
        "b_enc": torch.zeros(PLAN.num_latents),
        "b_dec": torch.zeros(PLAN.d_model),
    }
    trainee = Trainee(VARIANTS[kind](), PLAN, 0, OptimizerConfig(), parameters)
    trainee.rows_since_active[:400] = 10**9  # dead: auxiliary losses are at work too
    x = torch.nn.functional.normalize(torch.randn(PLAN.batch_rows, PLAN.d_model, generator=generator), dim=1)
    with torch.no_grad():
        take_step(trainee, x[:2048], 0, 1.0, 10**8)  # compiles, and fills the buffers that are used again
        before = memory_bytes("VmRSS")
        CLEAR.write_text("5")
        take_step(trainee, x, 1, 1.0, 10**8)
    assert memory_bytes("VmHWM") - before < 0.6 * ALL_PAIRS_BYTES
