"""Gated follows its definition."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from saecache.testing.dense import mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract
from saecache.testing.variant_example import Losses


class TestGated(VariantContract):
    settings: ClassVar[dict[str, Any]] = {"kind": "gated", "l1": {"coefficient": 0.02, "warmup": 0}}

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        W_mag = parameters["r_mag"].exp()[:, None] * parameters["W_enc"]
        magnitude = pre_activations({**parameters, "W_enc": W_mag, "b_enc": parameters["b_mag"]}, x)
        gate = pre_activations(parameters, x)
        codes = (gate > 0) * magnitude.relu()
        error = self.error(parameters, codes, x)
        frozen = {name: tensor.detach() for name, tensor in parameters.items()}
        gate_error = self.error(frozen, gate.relu(), x)
        return {
            "mse": mean_square(error),
            "gate": mean_square(gate_error),
            "l1": 0.02 * gate.relu().sum(1).mean(),
        }, codes

    def test_a_gate_is_open_where_the_magnitude_is_shut(self) -> None:
        """The example exercises all four cases of the two paths, or the test above would prove little."""
        parameters, x = self.example()
        parameters["b_mag"] -= 0.3
        gate = pre_activations(parameters, x) > 0
        codes = self.reference(parameters, x, torch.zeros(0))[1] > 0
        assert bool((gate & ~codes).any()) and bool((gate & codes).any()) and bool((~gate).any())
