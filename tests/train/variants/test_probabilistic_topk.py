"""Probabilistic TopK follows its definition, and so do its schedule and its ranking."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.store.reading.reader import ActivationCache
from saecache.testing.dense import mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract, WithoutRuns
from saecache.testing.variant_example import PLAN, Losses
from saecache.train import TrainConfig, load_sae, run
from saecache.train.variants.base.rows import Batch, RandomStream, Rows
from saecache.train.variants.base.variant import Plan
from saecache.train.variants.probabilistic_topk import ProbabilisticTopK


class TestProbabilisticTopK(VariantContract):
    """The definition in step 0 of 8 with a warmup of 2 steps, where β is 5."""

    settings: ClassVar[dict[str, Any]] = {"kind": "probabilistic_topk", "k": 5, "warmup": 2}
    noise: Tensor | None = None

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        a = pre_activations(parameters, x)  # b_enc is 0 in training; here it takes part
        logit = a.detach()
        if self.settings.get("layer_norm", True):
            logit = (logit - logit.mean(1, keepdim=True)) / (
                logit.var(1, keepdim=True, correction=0) + 1e-5
            ).sqrt()
        if self.noise is not None:
            logit = logit + self.noise.log() - (1 - self.noise).log()
        weight = self.settings.get("magnitude_weight", 1e-4)
        score = torch.sigmoid(logit / 5.0) + weight * a.detach().abs()
        mask = torch.zeros_like(a).scatter(1, score.topk(5, dim=1).indices, 1.0)
        codes = mask * a
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error)}, codes

    def step_on(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> Batch:
        batch = super().step_on(parameters, x, dead)
        if self.settings.get("gate") != "sigmoid":
            self.noise = batch.random_uniform(RandomStream.GATES, 0, x.shape[0], PLAN.num_latents).double()
        return batch

    def test_training_codes_are_the_definition(self) -> None:
        """``encode`` has no noise, even with ``as_trained``."""
        sae, x = self.trained_sae()
        self.noise = None
        tensors = {name: t.double() for name, t in sae.named_buffers()}
        _, wanted = self.reference(tensors, x.double(), torch.zeros(PLAN.num_latents, dtype=torch.bool))
        torch.testing.assert_close(sae.encode(x, as_trained=True).double(), wanted, rtol=1e-4, atol=1e-5)


class TestNoMagnitude(WithoutRuns, TestProbabilisticTopK):
    settings: ClassVar[dict[str, Any]] = {**TestProbabilisticTopK.settings, "magnitude_weight": 0.0}


class TestNoLayerNorm(WithoutRuns, TestProbabilisticTopK):
    settings: ClassVar[dict[str, Any]] = {**TestProbabilisticTopK.settings, "layer_norm": False}


class TestSigmoidGate(WithoutRuns, TestProbabilisticTopK):
    settings: ClassVar[dict[str, Any]] = {**TestProbabilisticTopK.settings, "gate": "sigmoid"}


@pytest.mark.parametrize("weight", [1e-4, 1e-2])
@pytest.mark.parametrize("beta", [5.0, 0.3, 0.02, 1e-4])
@pytest.mark.parametrize("width", [1.0, 0.03])
def test_the_ranking_is_that_of_the_exact_score(beta: float, weight: float, width: float) -> None:
    """Compare with float64 scores of the same float32 logits; only ties in float32 may differ."""
    generator = torch.Generator().manual_seed(0)
    rows, latents, k = 64, 2048, 16
    W_enc = torch.nn.functional.normalize(torch.randn(latents, 32, generator=generator), dim=1)
    x = width * torch.nn.functional.normalize(torch.randn(rows, 32, generator=generator), dim=1)
    parameters = {"W_enc": W_enc, "b_enc": torch.zeros(latents)}
    variant = ProbabilisticTopK(k=k, magnitude_weight=weight)
    state = {"beta": torch.tensor(beta)}
    chosen = variant.encode(Rows(x_centered=x, parameters=parameters, state=state)).to_dense() != 0

    a = x @ W_enc.T
    t = (torch.nn.functional.layer_norm(a, (latents,)) / beta).double()
    below_one = weight * a.abs().double() - torch.sigmoid(-t)  # s - 1: float64 itself would round 1 - 1e-17
    least = below_one.topk(k, dim=1).values[:, -1:]
    assert bool((chosen.sum(1) == k).all())
    slack = 1e-6 * least.abs() + 1e-9 * (beta > 0.01)
    assert bool((below_one[chosen].view(rows, k) >= least - slack).all())


def test_a_part_of_a_batch_has_the_gates_of_the_batch() -> None:
    contract, variant = TestProbabilisticTopK(), ProbabilisticTopK(k=5)
    batch = contract.step_on(*contract.example(), torch.zeros(PLAN.num_latents, dtype=torch.bool))
    a = torch.randn(PLAN.batch_rows, PLAN.num_latents, generator=torch.Generator().manual_seed(0))
    whole = variant.rank(batch, True, 0, a)
    assert not torch.equal(whole, variant.rank(batch, False, 0, a))
    part = batch.of_rows(slice(40, 200)).of_rows(slice(10, 100))
    assert torch.equal(variant.rank(part, True, 20, a[70:90]), whole[70:90])


def test_naive_scores_would_tie() -> None:
    """The ranking leaves out 1, because with it most of the best scores of a row are equal."""
    a = torch.linspace(0.05, 0.06, 50)
    naive = torch.sigmoid(a / 1e-4) + 1e-4 * a
    assert len(naive.unique()) < 25
    assert len((1e-4 * a - torch.sigmoid(-a / 1e-4)).unique()) == 50


def test_beta_waits_for_the_warmup_and_falls_exponentially() -> None:
    variant = ProbabilisticTopK(warmup=10)
    betas = torch.tensor([variant.beta_in(step, 110) for step in range(110)], dtype=torch.float64)
    assert torch.equal(betas[:10], torch.full((10,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(
        betas[10:].log().diff(), torch.full((99,), torch.tensor(2e-5).log() / 100).double()
    )
    assert float(betas[-1]) == pytest.approx(1e-4)


def test_impossible_schedules_are_reported() -> None:
    plan = Plan(d_model=24, num_latents=96, batch_rows=256, num_steps=8)
    (problem,) = ProbabilisticTopK(warmup=8).problems(plan)
    assert "lower warmup" in problem
    (problem,) = ProbabilisticTopK(beta_end=6.0).problems(plan)
    assert "beta_end=6 must not exceed beta_start=5" in problem


def test_b_enc_stays_zero_and_beta_ends_where_it_should(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (folder,) = run(
        make_config({"kind": "probabilistic_topk", "k": 5}), cache, tmp_path / "run"
    ).saes.values()
    sae = load_sae(folder)
    assert not bool(sae.b_enc.any())
    assert float(sae.get_buffer("beta")) == pytest.approx(1e-4)
    codes = sae.encode(cache.rows("resid", torch.arange(99).numpy()))
    assert bool((codes != 0).sum(1).eq(5).all())
