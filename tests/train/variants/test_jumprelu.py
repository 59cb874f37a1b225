"""JumpReLU follows its definition, whose estimated gradients are written as autograd functions."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.testing.dense import mean_square, pre_activations
from saecache.testing.variant_contract import VariantContract, WithoutRuns
from saecache.testing.variant_example import PLAN, Losses
from saecache.train import SAE
from saecache.train.variants.jumprelu import JumpReLU

WIDTH = 0.4


class Jump(torch.autograd.Function):
    """amount * [z > θ]; its gradient at the jump is a rectangle of WIDTH, which ``to_z`` passes to z too."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, amount: Tensor, to_z: bool) -> Tensor:
        ctx.save_for_backward(z, theta, amount)
        ctx.to_z = to_z
        return amount * (z > theta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        z, theta, amount = ctx.saved_tensors
        at_jump = gradient * amount * (((z - theta) / WIDTH).abs() < 0.5) / WIDTH
        return at_jump if ctx.to_z else None, -at_jump.sum(0), gradient * (z > theta), None


def jump_relu(z: Tensor, theta: Tensor, to_z: bool) -> Tensor:
    """z [z > θ]; the estimated gradient for θ has height θ at the jump, not z."""
    inside = z * (z > theta)
    return inside + Jump.apply(z, theta, theta.detach().expand_as(z), to_z) - (theta.detach() * (z > theta))


class TestStep(VariantContract):
    settings: ClassVar[dict[str, Any]] = {
        "kind": "jumprelu",
        "penalty": {"kind": "step", "coefficient": 0.01, "warmup": 0},
        "initial_threshold": 0.25,
        "bandwidth": WIDTH,
    }

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        z, theta = pre_activations(parameters, x), self.theta(parameters["threshold_parameter"])
        to_z = self.settings.get("jump_to") == "threshold_and_input"
        codes = jump_relu(z, theta, to_z)
        error = self.error(parameters, codes, x)
        count = Jump.apply(z, theta, torch.ones_like(z), to_z).sum(1).mean()
        return {"mse": mean_square(error), "sparsity": 0.01 * count}, codes

    def theta(self, parameter: Tensor) -> Tensor:
        return parameter.exp()

    def test_the_example_has_pairs_on_both_sides_of_the_jump(self) -> None:
        parameters, x = self.example()
        z, theta = pre_activations(parameters, x), self.theta(parameters["threshold_parameter"])
        near = (z - theta).abs() < WIDTH / 2
        assert bool((near & (z > theta)).any()) and bool((near & (z < theta)).any())

    def test_the_saved_threshold_is_what_decides(self) -> None:
        sae, x = self.trained_sae()
        assert isinstance(sae, SAE) and sae.threshold is not None
        pre = pre_activations(dict(sae.named_buffers()), x)
        assert torch.equal(sae.encode(x) != 0, pre > sae.threshold)


class TestStepToInput(WithoutRuns, TestStep):
    settings: ClassVar[dict[str, Any]] = {**TestStep.settings, "jump_to": "threshold_and_input"}


class TestLinear(TestStep):
    settings: ClassVar[dict[str, Any]] = {**TestStep.settings, "threshold_scale": "linear"}

    def theta(self, parameter: Tensor) -> Tensor:
        return parameter


class TestTanh(TestStep):
    settings: ClassVar[dict[str, Any]] = {
        **TestStep.settings,
        "penalty": {"kind": "tanh", "coefficient": 0.01, "warmup": 0, "scale": 2.0},
        "jump_to": "threshold_and_input",
    }

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        z, theta = pre_activations(parameters, x), self.theta(parameters["threshold_parameter"])
        codes = jump_relu(z, theta, to_z=True)
        error = self.error(parameters, codes, x)
        price = torch.tanh(2.0 * codes * self.decoder_norms(parameters)).sum(1).mean()
        return {"mse": mean_square(error), "sparsity": 0.01 * price}, codes

    def example(self) -> tuple[dict[str, Tensor], Tensor]:
        parameters, x = super().example()
        parameters["W_dec"] *= torch.linspace(0.2, 2, PLAN.num_latents)[:, None]
        return parameters, x


def test_only_the_step_penalty_keeps_the_decoder_at_norm_1() -> None:
    assert JumpReLU().unit_norm_decoder
    tanh = JumpReLU.model_validate({"penalty": {"kind": "tanh", "coefficient": 0.1}})
    assert not tanh.unit_norm_decoder


def test_scale_of_tanh_is_no_setting_of_step() -> None:
    with pytest.raises(ValueError, match="scale"):
        JumpReLU.model_validate({"penalty": {"kind": "step", "coefficient": 0.1, "scale": 4.0}})
