"""Matryoshka BatchTopK follows its definition."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.testing.dense import auxk_loss, mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract, WithoutRuns
from saecache.testing.variant_example import PLAN, Losses
from saecache.train.variants.base.variant import Plan
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.matryoshka import MatryoshkaBatchTopK


class TestMatryoshka(VariantContract):
    settings: ClassVar[dict[str, Any]] = {
        "kind": "matryoshka_batch_topk",
        "k": 5,
        "prefixes": [0.25, 0.5, 1.0],
        "weights": [0.5, 2.0, 1.5],
        "auxk": {"coefficient": 0.1, "k": 4},
    }
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        top = pre.flatten().topk(5 * x.shape[0]).indices
        codes = torch.zeros_like(pre).flatten().scatter(0, top, pre.flatten()[top].relu()).view_as(pre)
        losses = {}
        for size, weight in ((24, 0.5), (48, 2.0), (96, 1.5)):
            error = self.error(parameters, self.first_latents(codes, size), x)
            losses[f"mse_{size}"] = weight * mean_square(error)
        return losses | auxk_loss(parameters, pre, error, dead, 4, 0.1), codes


class TestSmallPrefixes(WithoutRuns, TestMatryoshka):
    """Most rows have prefixes without any active latent."""

    settings: ClassVar[dict[str, Any]] = {
        **TestMatryoshka.settings,
        "prefixes": [1 / 96, 1.0],
        "weights": None,
    }

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        losses, codes = super().reference(parameters, x, dead)
        error = self.error(parameters, self.first_latents(codes, 1), x)
        whole = losses["mse_96"] / 1.5
        rest = {name: loss for name, loss in losses.items() if name == "auxk"}
        return {"mse_1": mean_square(error), "mse_96": whole, **rest}, codes


def test_one_prefix_is_batch_topk() -> None:
    parameters, x = TestMatryoshka().example()
    none = torch.zeros(PLAN.num_latents, dtype=torch.bool)
    batches = []
    for variant in (MatryoshkaBatchTopK(k=5, prefixes=(1.0,)), BatchTopK(k=5)):
        contract = TestMatryoshka()
        contract.settings = variant.model_dump()  # type: ignore[misc]
        batches.append(contract.step_on(parameters, x, none))
    assert float(batches[0].outcome.loss) == float(batches[1].outcome.loss)
    for name, gradient in batches[0].gradients.items():
        assert torch.equal(gradient, batches[1].gradients[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixes": (0.5, 0.25, 1.0)}, "prefixes must ascend"),
        ({"prefixes": (0.25, 0.5)}, "prefixes must ascend and end with 1"),
        ({"prefixes": (0.5, 1.0), "weights": (1.0,)}, "2 prefixes need as many weights, got 1"),
    ],
)
def test_impossible_prefixes_are_reported(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatryoshkaBatchTopK.model_validate(settings)


def test_prefixes_smaller_than_a_latent_are_reported() -> None:
    plan = Plan(d_model=4, num_latents=10, batch_rows=32, num_steps=5)
    (problem,) = MatryoshkaBatchTopK(k=2).problems(plan)
    assert "give fewer prefixes, or more latents" in problem
