"""The optimizer equals torch's, and follows the definition of a unit-norm decoder."""

from typing import Any

import pytest
import torch
from torch import Tensor

from saecache.train.engine.optimizer import Optimizer, OptimizerConfig, OptimizerOverrides, normalize_rows


def example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 4), "W_dec": (6, 4), "b_enc": (6,), "b_dec": (4,)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_equals_torch_without_constraints(kind: Any) -> None:
    config = OptimizerConfig(kind=kind, weight_decay=0.1, clip_norm=None, betas=(0.8, 0.99))
    ours = example()
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in ours.items()}
    optimizer = Optimizer(config, ours, unit_norm_decoder=False)
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
        list(theirs.values()), lr=0.01, betas=(0.8, 0.99), weight_decay=0.1, foreach=False
    )
    for step in range(5):
        gradients = {name: tensor.detach() * (step + 1) + 0.1 for name, tensor in theirs.items()}
        for name, tensor in theirs.items():
            tensor.grad = gradients[name].clone()
        plain.step()
        with torch.no_grad():
            optimizer.step(gradients, optimizer.global_norm(gradients), 0.01)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name].detach())


def test_only_gradients_beyond_the_limit_are_scaled_all_alike() -> None:
    """The first moments show it: after one step they are (1 - beta1) times the gradient that was used."""
    for size, used in ((100.0, 2.0), (0.01, None)):
        gradients = {name: size * tensor for name, tensor in example().items()}
        optimizer = Optimizer(OptimizerConfig(clip_norm=2.0), example(), unit_norm_decoder=False)
        norm = optimizer.global_norm(gradients)
        assert float(norm) == pytest.approx(float(flat(gradients).norm()))
        optimizer.step(gradients, norm, 0.01)
        seen = flat(optimizer.exp_avg) / 0.1
        assert float(seen.norm()) == pytest.approx(used or float(norm), rel=1e-4)
        torch.testing.assert_close(seen / seen.norm(), flat(gradients) / norm.float())


def test_decoder_stays_on_the_sphere() -> None:
    parameters = example()
    normalize_rows(parameters["W_dec"])
    before = parameters["W_dec"].clone()
    optimizer = Optimizer(OptimizerConfig(clip_norm=None), parameters, unit_norm_decoder=True)
    gradients = example()
    gradients["W_dec"] += 5 * before
    norm = optimizer.global_norm(gradients)
    optimizer.step(gradients, norm, 0.1)
    tangential = gradients["W_dec"] - (gradients["W_dec"] * before).sum(1, keepdim=True) * before
    torch.testing.assert_close(optimizer.exp_avg["W_dec"], 0.1 * tangential)
    assert float(norm) == pytest.approx(float(flat({**gradients, "W_dec": tangential}).norm()))
    torch.testing.assert_close(parameters["W_dec"].norm(dim=1), torch.ones(6))


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def test_a_row_of_zeros_stays_finite() -> None:
    weights = torch.zeros(2, 3)
    normalize_rows(weights)
    assert weights.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_frozen_parameters_do_not_move_nor_count() -> None:
    parameters = example()
    optimizer = Optimizer(OptimizerConfig(), parameters, unit_norm_decoder=False, frozen=["b_enc"])
    before = parameters["b_enc"].clone()
    gradients = example()
    with torch.no_grad():
        norm = optimizer.global_norm(gradients)
        optimizer.step(gradients, norm, 0.1)
    assert torch.equal(parameters["b_enc"], before)
    rest = {name: gradient for name, gradient in example().items() if name != "b_enc"}
    assert float(norm) == pytest.approx(float(flat(rest).norm()))
    assert not any("b_enc" in name for name in optimizer.tensors())


def test_forget_clears_the_moments_of_some_latents_only() -> None:
    parameters = example()
    optimizer = Optimizer(OptimizerConfig(), parameters, unit_norm_decoder=False)
    gradients = example()
    with torch.no_grad():
        optimizer.step(gradients, optimizer.global_norm(gradients), 0.1)
    optimizer.forget(torch.tensor([1, 4]))
    moments = optimizer.tensors()
    for name in ("W_enc", "W_dec", "b_enc"):
        touched = (moments[f"exp_avg_sq.{name}"].reshape(6, -1) != 0).any(1)
        assert touched.tolist() == [True, False, True, True, False, True]
    assert bool((moments["exp_avg_sq.b_dec"] != 0).all())


def test_overrides_change_only_what_they_name() -> None:
    config = OptimizerOverrides(learning_rate=0.5).applied_to(OptimizerConfig(weight_decay=0.1))
    assert config == OptimizerConfig(weight_decay=0.1, learning_rate=0.5)
