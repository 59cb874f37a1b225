"""Multi-TopK follows its definition."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from saecache.testing.dense import auxk_loss, mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract
from saecache.testing.variant_example import PLAN, Losses
from saecache.train.variants.multi_topk import MultiTopK


class TestMultiTopK(VariantContract):
    settings: ClassVar[dict[str, Any]] = {
        "kind": "multi_topk",
        "k": 5,
        "multiple": 3,
        "weight": 0.25,
        "auxk": {"coefficient": 0.1, "k": 4},
    }
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)

        def error_with(k: int) -> tuple[Tensor, Tensor]:
            top = pre.topk(k, dim=1).indices
            codes = torch.zeros_like(pre).scatter(1, top, pre.gather(1, top).relu())
            return self.error(parameters, codes, x), codes

        error, codes = error_with(5)
        wide = error_with(15)[0]
        losses = {"mse": mean_square(error), "multi_topk": 0.25 * mean_square(wide)}
        return losses | auxk_loss(parameters, pre, error, dead, 4, 0.1), codes


def test_more_than_all_latents_is_reported() -> None:
    (problem,) = MultiTopK(k=32).problems(PLAN)
    assert "multiple * k = 128" in problem and "lower k or multiple" in problem
