"""BatchTopK follows its definition."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from saecache.testing.dense import auxk_loss, mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract
from saecache.testing.variant_example import Losses


class TestBatchTopK(VariantContract):
    settings: ClassVar[dict[str, Any]] = {"kind": "batch_topk", "k": 5, "auxk": {"coefficient": 0.1, "k": 4}}
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        top = pre.flatten().topk(5 * x.shape[0]).indices
        codes = torch.zeros_like(pre).flatten().scatter(0, top, pre.flatten()[top].relu()).view_as(pre)
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error), **auxk_loss(parameters, pre, error, dead, 4, 0.1)}, codes

    def test_threshold_is_the_least_selected_value_of_the_first_batch(self) -> None:
        sae, x = self.trained_sae()
        codes = sae.encode(x, as_trained=True)
        assert sae.threshold is not None
        torch.testing.assert_close(sae.threshold, codes[codes > 0].min())
        assert torch.equal(sae.encode(x) != 0, codes > sae.threshold)
