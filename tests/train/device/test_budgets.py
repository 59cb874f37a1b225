"""What a steady step may cost on a GPU with the Triton kernels: launches, synchronizations, bytes.

The size is that of F = 24,576 latents, B = 4,096 rows, D = 768, k = 32, all three divided by ``SCALE`` (k is
not): B * F, F * D and B * k * D are then SCALE² times smaller, and the bytes are multiplied by it. Lists of
pairs and rows shrink by SCALE only, so that the bytes are counted too high rather than too low.
"""

from typing import Any

import pytest
import torch

from saecache.train import TrainConfig
from saecache.train.backends import sources
from saecache.train.backends.choice import use_backend
from saecache.train.engine.loop import train_on_batch
from saecache.train.engine.trainee import Trainee
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

from .pretended_device import DEVICE, Counts, pretended_device

LATENTS, ROWS, WIDTH, K = 24_576, 4_096, 768, 32
FINER = {"topk", "batch_topk", "mutual_choice", "feature_choice", "relu"}  # 32; SCALE is 64 for others
# Launches, synchronizations, GB. The aims are 60, 2, 6 for TopK, twice that for the other kinds that select,
# and 30 GB for ReLU with half of its latents active. Matryoshka walks along its pairs twice, in two orders.
# Multi-TopK has five times the pairs; at this size it and Sampled-SAE's pool have too few latents to screen.
# Sampled-SAE and Probabilistic TopK look at the whole matrix in operations of torch, one pass over it each.
BUDGETS: dict[str, tuple[int, int, float]] = {
    "topk": (60, 2, 6.0),
    "batch_topk": (120, 4, 12.0),
    "mutual_choice": (120, 4, 12.0),
    "feature_choice": (120, 4, 12.0),
    "multi_topk": (120, 4, 22.0),
    "matryoshka_batch_topk": (160, 4, 18.0),
    "sampled": (150, 4, 23.0),
    "probabilistic_topk": (120, 4, 22.0),
    "relu": (100, 4, 30.0),
    "gated": (150, 6, 54.0),
    "jumprelu": (120, 4, 36.0),
}


def cost_of_a_step(kind: str, scale: int, monkeypatch: pytest.MonkeyPatch) -> Counts:
    """The second step's, when everything that is kept from step to step is there; no latent is dead."""
    monkeypatch.setattr(sources, "DEVICE_BLOCK_BYTES", sources.DEVICE_BLOCK_BYTES // scale**2)
    sources.block_bytes.cache_clear()
    latents, rows, width = LATENTS // scale, ROWS // scale, WIDTH // scale
    settings: dict[str, Any] = {"kind": kind, **({"k": K} if "k" in VARIANTS[kind].model_fields else {})}
    config = TrainConfig.model_validate(
        {"variants": [settings], "num_latents": latents, "batch_rows": rows, "steps": 100}
    )
    plan = Plan(d_model=width, num_latents=latents, batch_rows=rows, num_steps=100)
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    x = torch.nn.functional.normalize(torch.randn(2, rows, width, generator=generator), dim=2)
    parameters = {"W_enc": W / 2, "W_dec": W, "b_enc": torch.zeros(latents), "b_dec": torch.zeros(width)}
    with torch.no_grad(), pretended_device() as counts, use_backend("triton"):
        on_device = {name: tensor.to(DEVICE) for name, tensor in parameters.items()}
        trainee = Trainee(config.variants[0], plan, 0, config.optimizer, on_device)
        for step, batch in enumerate(x.to(DEVICE)):
            counts.reset()
            train_on_batch(trainee, {trainee.reading.inputs[0]: batch}, step, 0, 1.0, config)
    sources.block_bytes.cache_clear()
    return counts


def test_all_kinds_have_a_budget() -> None:
    assert BUDGETS.keys() == VARIANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_a_steady_step_stays_within_its_budget(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = 32 if kind in FINER else 64
    counts = cost_of_a_step(kind, scale, monkeypatch)
    launches, syncs, gigabytes = BUDGETS[kind]
    assert 0 < sum(counts.launches.values()) <= launches, counts.launches.most_common()
    assert sum(counts.syncs.values()) <= syncs, counts.syncs.most_common()
    moved = sum(counts.bytes.values()) * scale**2 / 1e9
    assert 1 < moved <= gigabytes, counts.bytes.most_common(20)
