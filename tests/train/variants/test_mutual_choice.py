"""Mutual Choice follows its definition; its selection is BatchTopK's."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.testing.dense import auxk_loss, mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract
from saecache.testing.variant_example import PLAN, Losses
from saecache.train.variants.base.gradients import finish_gradients
from saecache.train.variants.base.prevalence import SUM, WEIGHT
from saecache.train.variants.base.rows import Batch, Outcome
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.mutual_choice import MutualChoice


class TestMutualChoice(VariantContract):
    settings: ClassVar[dict[str, Any]] = {
        "kind": "mutual_choice",
        "k": 5,
        "auxk": {"coefficient": 0.1, "k": 4},
        "aux_zipf": {"coefficient": 0.2, "k": 3},
        "nfm": {"coefficient": 0.01},
        "nfm_inf": {"coefficient": 0.3},
        "window_rows": 512,
    }
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        top = pre.flatten().topk(5 * x.shape[0]).indices
        codes = torch.zeros_like(pre).flatten().scatter(0, top, pre.flatten()[top].relu()).view_as(pre)
        error = self.error(parameters, codes, x)
        matrix = torch.nn.functional.normalize(parameters["W_dec"], dim=1)
        matrix = matrix @ matrix.T
        losses = {
            "mse": mean_square(error),
            "nfm": 0.01 * torch.linalg.matrix_norm(matrix),
            "nfm_inf": 0.3 * (matrix - 9 * torch.eye(len(matrix))).amax(1).mean(),
        }
        return losses | auxk_loss(parameters, pre, error, dead, 4, 0.1), codes

    @pytest.mark.parametrize("step", [1, 2])
    def test_dying_latents_have_their_term_after_a_whole_window(self, step: int) -> None:
        parameters, x = self.example()
        prevalence = torch.linspace(0.5, 0.01, PLAN.num_latents)
        dying = torch.arange(90, 96)
        prevalence[dying] = 0.0
        none = torch.zeros(PLAN.num_latents, dtype=torch.bool)
        batch = step_at(self.variant, parameters, x, step, prevalence)

        exact = {name: t.double().requires_grad_() for name, t in parameters.items()}
        losses, codes = self.reference(exact, x.double(), none)
        if step * PLAN.batch_rows >= 512:
            error = codes @ exact["W_dec"] + exact["b_dec"] - x
            mask = none.index_fill(0, dying, True)
            term = auxk_loss(exact, pre_activations(exact, x.double()), error, mask, 3, 0.2)
            losses["aux_zipf"] = term["auxk"]
        total = torch.stack(list(losses.values())).sum()
        wanted = torch.autograd.grad(total, list(exact.values()))
        assert batch.outcome.losses.keys() == losses.keys()
        assert float(batch.outcome.loss) == pytest.approx(float(total.detach()), rel=1e-5)
        for name, gradient in zip(exact, wanted, strict=True):
            assert float((batch.gradients[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def step_at(variant: Any, parameters: dict[str, Tensor], x: Tensor, step: int, prevalence: Tensor) -> Batch:
    """A step later in the run, with the given running prevalence."""
    contract = TestMutualChoice()
    none = torch.zeros(PLAN.num_latents, dtype=torch.bool)
    batch = replace(contract.step_on(parameters, x, none), number=step)
    for gradient in batch.gradients.values():
        gradient.zero_()
    batch.outcome.losses.clear()
    batch.outcome.through_encoder.zero_()
    batch.state[SUM].copy_(prevalence)
    batch.state[WEIGHT].fill_(1.0)
    with torch.no_grad():
        variant.forward_backward(batch)
        finish_gradients(batch)
    return batch


def test_dead_latents_can_be_left_out_of_the_dying() -> None:
    parameters, x = TestMutualChoice().example()
    prevalence = torch.linspace(0.5, 0.01, PLAN.num_latents)
    prevalence[90:] = 0.0
    dead = torch.arange(PLAN.num_latents) >= 93

    def gradient(aux_zipf: dict[str, Any] | None, dead: Tensor) -> Tensor:
        settings = {"k": 5, "auxk": None, "window_rows": 512, "aux_zipf": aux_zipf}
        variant = MutualChoice.model_validate(settings)
        state = dict(variant.initial_state(PLAN)) | {SUM: prevalence.clone(), WEIGHT: torch.ones(())}
        outcome = Outcome.empty(PLAN.num_latents, x.device)
        batch = TestMutualChoice().step_on(parameters, x, dead)
        batch.gradients["W_enc"].zero_()
        with torch.no_grad():
            variant.forward_backward(replace(batch, number=2, state=state, outcome=outcome))
        return batch.gradients["W_enc"]

    none = torch.zeros_like(dead)
    selected, all_dying = gradient(None, none), gradient({}, none)
    assert torch.equal(gradient({}, dead), all_dying)
    assert torch.equal(gradient({"without_dead": True}, none), all_dying)
    without = gradient({"without_dead": True}, dead)
    assert torch.equal(without[dead], selected[dead]) and not torch.equal(all_dying[dead], selected[dead])
    assert not torch.equal(without[90:93], selected[90:93])


def test_the_rule_is_batch_topk() -> None:
    parameters, x = TestMutualChoice().example()
    none = torch.zeros(PLAN.num_latents, dtype=torch.bool)
    batch = TestMutualChoice().step_on(parameters, x, none)
    assert torch.equal(
        MutualChoice(k=5).encode(batch, as_trained=True).to_dense(),
        BatchTopK(k=5).encode(batch, as_trained=True).to_dense(),
    )


def test_a_window_that_the_run_never_fills_is_reported() -> None:
    (problem,) = MutualChoice(k=5, window_rows=8 * 256).problems(PLAN)
    assert "lower window_rows, or set aux_zipf to null" in problem
    assert MutualChoice(k=5).problems(PLAN) == []
