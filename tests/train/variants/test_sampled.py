"""Sampled-SAE follows its definition, and is BatchTopK if the pool holds all latents."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.testing.dense import auxk_loss, mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract, WithoutRuns
from saecache.testing.variant_example import PLAN, Losses
from saecache.train.variants.base.rows import Rows
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.sampled import Sampled


class TestSampled(VariantContract):
    settings: ClassVar[dict[str, Any]] = {
        "kind": "sampled",
        "k": 5,
        "pool_factor": 2.5,
        "auxk": {"coefficient": 0.1, "k": 4},
    }
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        candidates = torch.zeros(pre.shape[1], dtype=torch.bool)
        candidates[self.score(pre).topk(12).indices] = True  # floor(2.5 * 5)
        masked = pre.relu() * candidates
        top = masked.flatten().topk(5 * x.shape[0]).indices
        codes = torch.zeros_like(pre).flatten().scatter(0, top, masked.flatten()[top]).view_as(pre)
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error), **auxk_loss(parameters, pre, error, dead, 4, 0.1)}, codes

    def score(self, pre: Tensor) -> Tensor:
        return pre.relu().square().sum(0) + 0.01


class TestL2(WithoutRuns, TestSampled):
    settings: ClassVar[dict[str, Any]] = {**TestSampled.settings, "score": "l2"}

    def score(self, pre: Tensor) -> Tensor:
        return pre.relu().norm(dim=0)


class TestEntropy(TestSampled):
    settings: ClassVar[dict[str, Any]] = {**TestSampled.settings, "score": "entropy"}

    def score(self, pre: Tensor) -> Tensor:
        q = pre.relu() / pre.relu().sum(0)
        return -(q * (q + 1e-12).log()).sum(0)


class TestLowEntropy(WithoutRuns, TestEntropy):
    settings: ClassVar[dict[str, Any]] = {**TestEntropy.settings, "entropy_prefers": "low"}

    def score(self, pre: Tensor) -> Tensor:
        return -super().score(pre)


class TestUniform(VariantContract):
    settings: ClassVar[dict[str, Any]] = {**TestSampled.settings, "score": "uniform"}
    has_dead_term = True
    heldout_fvu_below = 1.0  # inference has no pool

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        """The definition with the pool that was drawn; another test checks that pools are random."""
        pre = pre_activations(parameters, x)
        candidates = torch.zeros(pre.shape[1], dtype=torch.bool)
        candidates[self.drawn] = True
        masked = pre.relu() * candidates
        top = masked.flatten().topk(5 * x.shape[0]).indices
        codes = torch.zeros_like(pre).flatten().scatter(0, top, masked.flatten()[top]).view_as(pre)
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error), **auxk_loss(parameters, pre, error, dead, 4, 0.1)}, codes

    drawn: Tensor

    def step_on(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> Any:
        batch = super().step_on(parameters, x, dead)
        assert isinstance(self.variant, Sampled)
        self.drawn = self.variant.choose_pool(batch)
        return batch

    def test_training_codes_are_the_definition(self) -> None:
        sae, x = self.trained_sae()
        tensors = dict(sae.named_buffers())
        self.drawn = Sampled.choose_pool(self.variant, Rows(x_centered=x, parameters=tensors, state={}))  # type: ignore[arg-type]
        _, wanted = self.reference(tensors, x, torch.zeros(PLAN.num_latents, dtype=torch.bool))
        torch.testing.assert_close(sae.encode(x, as_trained=True), wanted, rtol=1e-4, atol=1e-5)

    def test_every_step_draws_another_pool(self) -> None:
        parameters, x = self.example()
        batch = self.step_on(parameters, x, torch.zeros(PLAN.num_latents, dtype=torch.bool))
        pools = []
        for step in range(50):
            pools.append(self.variant.choose_pool(replace(batch, number=step)))  # type: ignore[attr-defined]
        assert all(torch.equal(pool, pool.unique()) and len(pool) == 12 for pool in pools)
        counts = torch.bincount(torch.cat(pools), minlength=PLAN.num_latents)
        assert int(counts.max()) < 20 and int((counts == 0).sum()) < 5


def test_the_threshold_leaves_k_latents_without_the_pool() -> None:
    counts = {}
    for threshold_of in ("all", "pool"):
        contract = TestSampled()
        contract.settings = {**TestSampled.settings, "threshold_of": threshold_of}  # type: ignore[misc]
        sae, x = contract.trained_sae()
        counts[threshold_of] = float((sae.encode(x) != 0).sum(1).float().mean())
    assert counts["all"] == pytest.approx(5, abs=0.01) and counts["pool"] > 10


@pytest.mark.parametrize("score", ["l2", "squared_l2", "entropy", "uniform"])
def test_a_pool_of_all_latents_is_batch_topk(score: str) -> None:
    """Losses, gradients, thresholds and codes are equal."""
    parameters, x = TestSampled().example()
    dead = torch.rand(PLAN.num_latents, generator=torch.Generator().manual_seed(1)) < 0.2
    results = []
    for settings in (
        {"kind": "sampled", "k": 7, "pool_factor": 96 / 7, "score": score},
        {"kind": "batch_topk", "k": 7},
    ):
        contract = TestSampled()
        contract.settings = settings  # type: ignore[misc]
        batch = contract.step_on(parameters, x, dead)
        codes = contract.variant.encode(batch, as_trained=True).to_dense()
        results.append({**batch.gradients, **batch.outcome.losses, **batch.state, "codes": codes})
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_l2_and_squared_l2_rank_alike() -> None:
    parameters, x = TestSampled().example()
    rows = Rows(x_centered=x, parameters=parameters, state={})
    assert torch.equal(
        Sampled(k=5, score="l2").choose_pool(rows), Sampled(k=5, score="squared_l2").choose_pool(rows)
    )


def test_scores_of_pre_activations_see_the_negative_ones() -> None:
    parameters, x = TestSampled().example()
    parameters["b_enc"] -= 1.0
    rows = Rows(x_centered=x, parameters=parameters, state={})
    variant = Sampled(k=5, scored="pre_activations")
    pre = x @ parameters["W_enc"].T + parameters["b_enc"]
    torch.testing.assert_close(variant.scores(rows).float(), pre.square().sum(0))


def test_low_entropy_passes_over_latents_that_do_not_fire() -> None:
    parameters, x = TestSampled().example()
    parameters["b_enc"][:40] = -100.0
    rows = Rows(x_centered=x, parameters=parameters, state={})
    pool = Sampled(k=5, score="entropy", entropy_prefers="low").choose_pool(rows)
    assert int(pool.min()) >= 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_factor": 0.5}, "greater than or equal to 1"),
        ({"score": "l2", "entropy_prefers": "low"}, "entropy_prefers has no effect with score=l2"),
        ({"score": "entropy", "scored": "pre_activations"}, "needs values of one sign"),
        ({"score": "uniform", "scored": "pre_activations"}, "uses no values"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampled.model_validate(settings)


def test_a_pool_larger_than_the_dictionary_is_reported() -> None:
    (problem,) = Sampled(k=8, pool_factor=13).problems(PLAN)
    assert "asks for 104 of only 96 latents: set it to 12 (BatchTopK) or less" in problem
    assert Sampled(k=8, pool_factor=12).problems(PLAN) == []


def test_names_tell_the_settings_apart() -> None:
    assert Sampled(k=5, pool_factor=3).run_name == "sampled_squared_l2_l3_k5"
    assert BatchTopK(k=5).run_name == "batch_topk_k5"
