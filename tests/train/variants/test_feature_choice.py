"""Feature Choice follows its definition, and its counts are right."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.testing.dense import mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract
from saecache.testing.variant_example import PLAN, Losses, centered_rows
from saecache.train.variants.base.gradients import finish_gradients
from saecache.train.variants.base.rows import Batch, Outcome, Rows
from saecache.train.variants.base.running_threshold import SUM, WEIGHT, threshold_of
from saecache.train.variants.base.variant import Plan, Variant
from saecache.train.variants.base.zipf import ZipfAllotment
from saecache.train.variants.feature_choice import FeatureChoice, ranks, uniform_counts
from saecache.train.variants.mutual_choice import MutualChoice

NONE_DEAD = torch.zeros(PLAN.num_latents, dtype=torch.bool)


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
        error = self.error(parameters, codes, x)
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


class TestZipf(VariantContract):
    settings: ClassVar[dict[str, Any]] = {
        "kind": "feature_choice",
        "k": 5,
        "zipf": {"alpha": 1.0, "beta": 3.0, "max_rows": 60},
    }

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        rows, latents = pre.shape
        codes = torch.zeros_like(pre)
        total = sum(1 / (i + 3) for i in range(1, latents + 1))
        for i in range(1, latents + 1):
            m = min(int(5 * rows / total / (i + 3)), 60)
            top = pre[:, i - 1].topk(m).indices
            codes[top, i - 1] = pre[top, i - 1].relu()
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error)}, codes

    def test_the_cap_is_reached_and_no_latent_is_left_out(self) -> None:
        parameters, x = self.example()
        firing = self.step_on(parameters, x, NONE_DEAD).outcome.firing
        assert int(firing.max()) == 60 and int(firing.min()) > 0


class TestPhases(TestFeatureChoice):
    """The contract compares the first step of Feature Choice; its runs have both phases."""

    settings: ClassVar[dict[str, Any]] = {
        "kind": "feature_choice",
        "k": 5,
        "mutual_choice": {"steps": 2, "auxk": {"k": 4}, "aux_zipf": {"k": 4}, "window_rows": 256},
    }

    def step_on(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor, step: int = 2) -> Batch:
        state = dict(self.variant.initial_state(PLAN))
        return step_from(self.variant, state, parameters, x, dead, step, self.target(x))

    def test_the_first_phase_is_mutual_choice(self) -> None:
        parameters, x = self.example()
        dead = torch.rand(PLAN.num_latents, generator=torch.Generator().manual_seed(3)) < 0.3
        terms = {key: value for key, value in self.settings["mutual_choice"].items() if key != "steps"}
        mutual = MutualChoice.model_validate({"k": 5, **terms})
        ours = self.step_on(parameters, x, dead, step=1)
        theirs = step_from(mutual, dict(mutual.initial_state(PLAN)), parameters, x, dead, 1)
        assert ours.outcome.losses == theirs.outcome.losses
        assert ours.outcome.losses.keys() == {"mse", "auxk", "aux_zipf"}
        assert all(torch.equal(ours.gradients[name], theirs.gradients[name]) for name in ours.gradients)
        thresholds = self.variant.inference_tensors(ours.state)["threshold"]
        shared = mutual.inference_tensors(theirs.state)["threshold"]
        torch.testing.assert_close(thresholds, shared.expand(PLAN.num_latents))

    def test_the_second_phase_has_no_auxiliary_loss_and_thresholds_of_its_own(self) -> None:
        parameters, x = self.example()
        state = dict(self.variant.initial_state(PLAN))
        for step in range(3):
            batch = step_from(self.variant, state, parameters, x, ~NONE_DEAD, step)
        assert batch.outcome.losses.keys() == {"mse"}
        codes = self.variant.encode(batch, as_trained=True).to_dense()
        least = torch.where(codes > 0, codes, torch.inf).amin(0)
        torch.testing.assert_close(
            self.variant.inference_tensors(state)["threshold"][least > 0], least[least > 0]
        )


class TestZipfPhases(TestPhases):
    settings: ClassVar[dict[str, Any]] = {
        **TestPhases.settings,
        "zipf": {"alpha": 1.0, "beta": 3.0, "rounding": "carry"},
    }
    step = 2

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        """In step 2 without a first phase all latents are equally prevalent, so ranks follow their order."""
        pre = pre_activations(parameters, x)
        codes = torch.zeros_like(pre)
        law = ZipfAllotment.model_validate(self.settings["zipf"])
        for latent, m in enumerate(law.rows_in_batch(5, 96, x.shape[0], self.step).tolist()):
            top = pre[:, latent].topk(m).indices
            codes[top, latent] = pre[top, latent].relu()
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error)}, codes

    def test_training_codes_are_the_definition(self) -> None:
        self.step = 0  # outside training the counts are those of the first step
        super().test_training_codes_are_the_definition()

    def test_each_latent_has_its_own_threshold(self) -> None:
        sae, x = self.trained_sae()
        _, codes = self.reference(dict(sae.named_buffers()), x, NONE_DEAD)
        assert sae.threshold is not None
        torch.testing.assert_close(sae.threshold, torch.where(codes > 0, codes, torch.inf).amin(0))

    def test_no_latent_is_dead(self) -> None:
        parameters, x = self.example()
        firing = [self.step_on(parameters, x, NONE_DEAD, step).outcome.firing for step in range(2, 6)]
        assert bool((torch.stack(firing).sum(0) > 0).all())

    def test_ranks_are_those_at_the_end_of_the_first_phase(self) -> None:
        parameters, x = self.example()
        state = dict(self.variant.initial_state(PLAN))
        density = torch.zeros(PLAN.num_latents)
        for step in range(4):
            firing = step_from(self.variant, state, parameters, x + step, NONE_DEAD, step).outcome.firing
            if step < 2:
                density += firing * 2**step  # with a half-life of one batch the second counts twice
            if step == 2:
                rank = state["rank"].clone()
        assert torch.equal(state["rank"], rank)
        assert bool((density[rank.argsort()].diff() <= 0).all())
        assert sorted(rank.tolist()) == list(range(PLAN.num_latents))


def step_from(
    variant: Variant,
    state: dict[str, Tensor],
    parameters: Mapping[str, Tensor],
    x: Tensor,
    dead: Tensor,
    step: int,
    target: Tensor | None = None,
) -> Batch:
    """Take one step at any point of the run, from any state."""
    batch = Batch(
        **centered_rows(parameters, x, x if target is None else target),
        parameters=parameters,
        state=state,
        gradients={name: torch.zeros_like(t) for name, t in parameters.items()},
        outcome=Outcome.empty(len(dead), x.device),
        dead=dead,
        number=step,
        num_steps=PLAN.num_steps,
        seed=0,
        step_rows=x.shape[0],
    )
    with torch.no_grad():
        variant.forward_backward(batch)
        finish_gradients(batch)
    return batch


@pytest.mark.parametrize(
    ("total", "latents", "rows"), [(960, 96, 256), (1280, 96, 256), (97, 96, 4), (5, 3, 1)]
)
def test_counts_share_the_budget_evenly(total: int, latents: int, rows: int) -> None:
    counts = uniform_counts(total, latents, rows)
    assert int(counts.sum()) == min(total, latents * rows)
    assert int(counts.max()) - int(counts.min()) <= 1


def test_a_batch_too_small_for_the_latents_is_reported() -> None:
    plan = Plan(d_model=24, num_latents=96, batch_rows=10, num_steps=1)
    (problem,) = FeatureChoice(k=9).problems(plan)
    assert "set batch_rows to 11 or more" in problem


def test_carried_rows_are_the_expectation_on_average() -> None:
    zipf = ZipfAllotment(rounding="carry")
    expected = zipf.expected_rows(2, 500, 64)
    assert float(expected[-1]) < 1
    steps = torch.stack([zipf.rows_in_batch(2, 500, 64, step) for step in range(200)])
    torch.testing.assert_close(steps.double().mean(0), expected, atol=1 / 200, rtol=0)
    assert bool((steps >= expected.floor()).all() and (steps <= expected.ceil()).all())
    assert float((steps.sum(1) - 128).abs().max()) < 25  # spread over the batches


def test_the_densest_latent_has_rank_0() -> None:
    assert ranks(torch.tensor([0.1, 0.4, 0.0, 0.4])).tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 5, "zipf": {"max_rows": 300}}, "zipf.max_rows=300 is more than the 256 rows of a batch"),
        ({"k": 1, "zipf": {"beta": 0.0}}, "set batch_rows to 495 or more, or zipf.rounding to carry"),
        ({"k": 5, "mutual_choice": {"steps": 8}}, "leaves Feature Choice none of 8 steps"),
        ({"k": 5, "mutual_choice": {"steps": 0.01}}, "is less than one of 8 steps: raise it"),
        ({"k": 5, "threshold": {"start_step": 8}}, "threshold.start_step=8 is after the last of 8 steps"),
    ],
)
def test_impossible_settings_are_reported(settings: dict[str, Any], message: str) -> None:
    (problem,) = FeatureChoice.model_validate(settings).problems(PLAN)
    assert message in problem


def test_the_batch_that_is_asked_for_is_enough() -> None:
    variant = FeatureChoice.model_validate({"k": 1, "zipf": {"beta": 0.0}})
    enough, too_few = (replace(PLAN, batch_rows=rows) for rows in (495, 494))
    assert variant.problems(enough) == [] and variant.problems(too_few) != []


@pytest.mark.parametrize(
    ("latents", "k", "zipf"),
    [(512, 4, None), (96, 2, {"beta": 3.0}), (512, 4, {"rounding": "carry"})],
    ids=["uniform", "zipf", "carried"],
)
def test_inference_is_as_dense_as_training(latents: int, k: int, zipf: dict[str, Any] | None) -> None:
    """Within 2 % on rows that no threshold has seen. The means of least values alone are off by more."""
    threshold = {"counted_share": 0.25}  # all rows of every fourth batch
    variant = FeatureChoice.model_validate({"k": k, "zipf": zipf, "threshold": threshold})
    plan = Plan(d_model=24, num_latents=latents, batch_rows=256, num_steps=400)
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(latents, 24, generator=generator))
    biases = {"b_enc": torch.zeros(latents), "b_dec": torch.zeros(24)}
    parameters = {"W_enc": directions, "W_dec": directions, **biases}
    state, dead = dict(variant.initial_state(plan)), torch.zeros(latents, dtype=torch.bool)
    selected = 0
    for step in range(plan.num_steps):
        x = torch.nn.functional.normalize(torch.randn(256, 24, generator=generator))
        selected += int(step_from(variant, state, parameters, x, dead, step).outcome.firing.sum())
    wanted = selected / plan.num_steps / 256

    fresh = torch.nn.functional.normalize(torch.randn(8192, 24, generator=generator))
    error = {}
    for name, part in (("counted", state), ("means", {key: state[key] for key in (SUM, WEIGHT)})):
        rows = Rows(x_centered=fresh, parameters=parameters, state=threshold_of(part))
        error[name] = abs(len(variant.encode(rows)) / len(fresh) / wanted - 1)
    assert error["counted"] < 0.02 < error["means"], error


def test_another_momentum_leaves_the_counting_on() -> None:
    assert FeatureChoice.model_validate({"threshold": {"momentum": 0.5}}).threshold.counted_share == 1 / 16


def test_the_rule_of_training_carries_rows_over_the_batches_that_are_encoded() -> None:
    """No latent is left out for ever because its share of the first batch is below one row."""

    class Carried(TestZipf):
        settings: ClassVar[dict[str, Any]] = {
            "kind": "feature_choice",
            "k": 1,
            "zipf": {"alpha": 1.5, "beta": 0.0, "rounding": "carry"},
        }

    sae, x = Carried().trained_sae()
    codes = [sae.encode(x, as_trained=True, batch_number=number) for number in range(40)]
    fired = torch.stack([(code > 0).sum(0) for code in codes])
    law = ZipfAllotment(alpha=1.5, beta=0.0, rounding="carry")
    wanted = torch.stack([law.rows_in_batch(1, PLAN.num_latents, len(x), n) for n in range(40)])
    positive = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc > 0).sum(0)
    assert torch.equal(fired, wanted.minimum(positive))
    assert int((fired[0] == 0).sum()) > 10 and bool((fired.sum(0) > 0).all())
