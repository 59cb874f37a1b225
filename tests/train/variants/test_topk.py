"""TopK follows its definition."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from saecache.testing.dense import auxk_loss, mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract
from saecache.testing.variant_example import Losses


class TestTopK(VariantContract):
    settings: ClassVar[dict[str, Any]] = {"kind": "topk", "k": 5, "auxk": {"coefficient": 0.1, "k": 4}}
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        top = pre.topk(5, dim=1).indices
        codes = torch.zeros_like(pre).scatter(1, top, pre.gather(1, top).relu())
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error), **auxk_loss(parameters, pre, error, dead, 4, 0.1)}, codes


class TestTopKWithManyDeadLatents(VariantContract):
    """By default AuxK trains D/2 latents a row until more are dead, then twice k."""

    settings: ClassVar[dict[str, Any]] = {"kind": "topk", "k": 2, "auxk": {"coefficient": 0.1}}
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        top = pre.topk(2, dim=1).indices
        codes = torch.zeros_like(pre).scatter(1, top, pre.gather(1, top).relu())
        error = self.error(parameters, codes, x)
        k = 4 if int(dead.sum()) > 8 else 8
        return {"mse": mean_square(error), **auxk_loss(parameters, pre, error, dead, k, 0.1)}, codes
