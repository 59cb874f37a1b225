"""TopK follows its definition."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..variant_contract import Losses, VariantContract
from .dense import auxk_loss, mean_square, pre_activations


class TestTopK(VariantContract):
    settings: ClassVar[dict[str, Any]] = {"kind": "topk", "k": 5, "auxk": {"coefficient": 0.1, "k": 4}}
    has_dead_term = True

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        pre = pre_activations(parameters, x)
        top = pre.topk(5, dim=1).indices
        codes = torch.zeros_like(pre).scatter(1, top, pre.gather(1, top).relu())
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error), **auxk_loss(parameters, pre, error, dead, 4, 0.1)}, codes
