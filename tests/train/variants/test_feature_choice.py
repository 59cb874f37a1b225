"""Feature Choice against its definition, and its counts."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.train.variant import Plan
from saecache.train.variants.feature_choice import FeatureChoice, uniform_counts

from ..variant_contract import PLAN, Losses, VariantContract
from .dense import mean_square, pre_activations


class TestFeatureChoice(VariantContract):
    settings: ClassVar[dict[str, Any]] = {"kind": "feature_choice", "k": 5}

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        codes = torch.zeros_like(pre)
        rows, latents = pre.shape
        for latent in range(latents):
            m = 5 * rows // latents + (latent < 5 * rows % latents)
            top = pre[:, latent].topk(m).indices
            codes[top, latent] = pre[top, latent].relu()
        error = codes @ parameters["W_dec"] + parameters["b_dec"] - x
        return {"mse": mean_square(error)}, codes

    def test_each_latent_has_its_own_threshold(self) -> None:
        sae, x = self.trained_sae()
        codes = sae.encode(x, as_trained=True)
        assert sae.threshold is not None and sae.threshold.shape == (PLAN.num_latents,)
        least = torch.where(codes > 0, codes, torch.inf).amin(0)
        torch.testing.assert_close(sae.threshold, least)

    def test_no_latent_is_dead(self) -> None:
        parameters, x = self.example()
        batch = self.step_on(parameters, x, torch.zeros(PLAN.num_latents, dtype=torch.bool))
        assert bool((batch.outcome.firing > 0).all())


@pytest.mark.parametrize(
    ("total", "latents", "rows"), [(960, 96, 256), (1280, 96, 256), (97, 96, 4), (5, 3, 1)]
)
def test_counts_share_the_budget_evenly(total: int, latents: int, rows: int) -> None:
    counts = uniform_counts(total, latents, rows)
    assert int(counts.sum()) == min(total, latents * rows)
    assert int(counts.max()) - int(counts.min()) <= 1


def test_a_batch_too_small_for_the_latents_is_told() -> None:
    plan = Plan(d_model=24, num_latents=96, batch_rows=10, num_steps=1)
    (problem,) = FeatureChoice(k=9).problems(plan)
    assert "set batch_rows to 11 or more" in problem
