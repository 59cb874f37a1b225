"""ReLU follows its definition with both decoders and with resampling."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from saecache.testing.dense import mean_square, pre_activations
from saecache.testing.shapes import SHAPES
from saecache.testing.stepping import take_step
from saecache.testing.variant_contract import VariantContract
from saecache.testing.variant_example import PLAN, Losses, centered_rows
from saecache.train import TrainConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.variants.relu import ReLU


class TestReLU(VariantContract):
    settings: ClassVar[dict[str, Any]] = {"kind": "relu", "l1": {"coefficient": 0.02, "warmup": 0.5}}

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        codes = pre_activations(parameters, x).relu()
        error = self.error(parameters, codes, x)
        first_of_four_steps = 0.02 / 4
        return {"mse": mean_square(error), "l1": first_of_four_steps * codes.sum(1).mean()}, codes


class TestFreeDecoder(VariantContract):
    settings: ClassVar[dict[str, Any]] = {
        "kind": "relu",
        "l1": {"coefficient": 0.02, "warmup": 0},
        "decoder": "free",
    }

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        codes = pre_activations(parameters, x).relu()
        error = self.error(parameters, codes, x)
        weighted = codes * self.decoder_norms(parameters)
        return {"mse": mean_square(error), "l1": 0.02 * weighted.sum(1).mean()}, codes

    def example(self) -> tuple[dict[str, Tensor], Tensor]:
        parameters, x = super().example()
        parameters["W_dec"] *= torch.linspace(0.2, 2, PLAN.num_latents)[:, None]
        return parameters, x

    def test_the_decoder_is_free(self) -> None:
        trainee = make_trainee(self.variant, self.example()[0])
        take_step(trainee, self.example()[1] - trainee.parameters["b_dec"], 0, 1.0, 10**9)
        norms = trainee.parameters["W_dec"].norm(dim=1)
        assert float((norms - 1).abs().max()) > 0.5


class TestResampling(VariantContract):
    """Resampling happens before and after the checkpoint from which the contract resumes."""

    settings: ClassVar[dict[str, Any]] = {
        "kind": "relu",
        "l1": {"coefficient": 0.02, "warmup": 0},
        "resampling": {"every_steps": 2, "idle_steps": 2, "times": 3},
    }

    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        codes = pre_activations(parameters, x).relu()
        error = self.error(parameters, codes, x)
        return {"mse": mean_square(error), "l1": 0.02 * codes.sum(1).mean()}, codes


def make_trainee(variant: Any, parameters: dict[str, Tensor]) -> Trainee:
    config = TrainConfig.model_validate({"variants": [{"kind": "topk"}], "num_latents": 96, "steps": 8})
    return Trainee(variant, PLAN, 0, config.optimizer, parameters)


def test_only_idle_latents_start_again_at_badly_reconstructed_rows() -> None:
    parameters, x = TestReLU().example()
    idle = torch.tensor([3, 40, 95])
    parameters["b_enc"][idle] = -50.0
    x[7] *= 30  # its loss is so large that every draw is this row
    variant = ReLU.model_validate(
        {"l1": {"coefficient": 0.02}, "resampling": {"every_steps": 2, "idle_steps": 2}}
    )
    trainee = make_trainee(variant, parameters)
    take_step(trainee, x - trainee.parameters["b_dec"], 0, 1.0, 10**9)
    before = {name: tensor.clone() for name, tensor in trainee.parameters.items()}
    centered = x - trainee.parameters["b_dec"]
    take_step(trainee, x - trainee.parameters["b_dec"], 1, 1.0, 10**9)
    after = trainee.parameters

    direction = centered[7] / centered[7].norm()
    torch.testing.assert_close(after["W_dec"][idle], direction.expand(3, -1))
    others = torch.ones(PLAN.num_latents, dtype=torch.bool).index_fill(0, idle, False)
    norm = 0.2 * after["W_enc"][others].norm(dim=1).mean()
    torch.testing.assert_close(after["W_enc"][idle], direction.expand(3, -1) * norm)
    assert torch.equal(after["b_enc"][idle], torch.zeros(3))
    assert float((after["W_dec"][others] - before["W_dec"][others]).abs().max()) < 0.01
    for name, tensor in trainee.optimizer.tensors().items():
        if tensor.dim() and tensor.shape[0] == PLAN.num_latents:
            assert not bool(tensor[idle].any()), name
            assert bool(tensor[others].any()), name
    assert torch.equal(trainee.state["steps_since_active"][idle], torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("resampling", "message"),
    [
        ({"every_steps": 8, "idle_steps": 2}, "resampling.every_steps=8 is never reached in 8 steps"),
        ({"every_steps": 4, "idle_steps": 5}, "resampling.idle_steps=5 must not exceed every_steps=4"),
    ],
)
def test_resampling_that_cannot_happen_is_reported(resampling: dict[str, int], message: str) -> None:
    (problem,) = ReLU.model_validate({"resampling": resampling}).problems(PLAN)
    assert message in problem


@torch.no_grad()
def test_latents_of_a_transcoder_restart_between_a_row_and_its_target() -> None:
    contract = TestReLU()
    contract.shape = SHAPES["transcoder"]
    parameters, x = contract.example()
    idle = torch.tensor([3, 40, 95])
    parameters["b_enc"][idle] = -50.0
    target = contract.target(x)
    target[7] *= 100  # its loss is so large that every draw is this row
    variant = ReLU.model_validate(
        {"l1": {"coefficient": 0.02}, "resampling": {"every_steps": 2, "idle_steps": 2}}
    )
    config = TrainConfig.model_validate({"variants": [{"kind": "topk"}], "num_latents": 96, "steps": 8})
    trainee = Trainee(variant, contract.plan, 0, config.optimizer, parameters)
    for step in range(2):
        rows = centered_rows(trainee.parameters, x, target)
        rows = {name: tensor.clone() for name, tensor in rows.items()}
        trainee.add_batch(*rows.values(), step, 10**9)
        trainee.update(1.0)
    for name, row in (("W_enc", rows["x_centered"][7]), ("W_dec", rows["target_centered"][7])):
        found = torch.nn.functional.normalize(trainee.parameters[name][idle], dim=1)
        torch.testing.assert_close(found, (row / row.norm()).expand(3, -1), rtol=1e-4, atol=1e-4)
    assert bool((trainee.parameters["b_enc"][idle] == 0).all())
    for name in ("b_in", "b_dec"):
        assert bool(trainee.optimizer.exp_avg_sq[name].any()), "biases have no latents to forget"
