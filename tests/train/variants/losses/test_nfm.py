"""NFM and NFM-inf equal what the F x F matrix gives, which they never form."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from saecache.train.variants.base.rows import Batch, Outcome
from saecache.train.variants.losses import nfm as module
from saecache.train.variants.losses.nfm import NFM, NFMInf, row_norms

F, D = 50, 12


def make_batch(step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(F, D, generator=generator) * torch.linspace(0.2, 3, F)[:, None]
    return Batch(
        x_centered=torch.zeros(4, D),
        target_centered=torch.zeros(4, D),
        parameters={"W_enc": torch.zeros(F, D), "W_dec": W_dec},
        state={},
        gradients={"W_dec": torch.zeros(F, D)},
        outcome=Outcome.empty(F, torch.device("cpu")),
        dead=torch.zeros(F, dtype=torch.bool),
        number=step,
        num_steps=10,
        seed=0,
        step_rows=4,
    )


def matrix(W_dec: Tensor) -> Tensor:
    unit = W_dec / W_dec.norm(dim=1, keepdim=True)
    return unit @ unit.T


def off_diagonal(W_dec: Tensor) -> Tensor:
    return matrix(W_dec) - 9 * torch.eye(F, dtype=W_dec.dtype)


def add(loss: NFM | NFMInf, batch: Batch) -> None:
    loss(batch, row_norms(batch.parameters["W_dec"]))


def check(loss: NFM | NFMInf, name: str, wanted: Callable[[Tensor], Tensor]) -> None:
    batch = make_batch()
    add(loss, batch)
    exact = batch.parameters["W_dec"].double().requires_grad_()
    value = wanted(exact)
    (gradient,) = torch.autograd.grad(value, exact)
    assert float(batch.outcome.losses[name]) == pytest.approx(float(value.detach()), rel=1e-6)
    assert float((batch.gradients["W_dec"] - gradient).norm() / gradient.norm()) < 1e-6


@pytest.mark.parametrize("rows", [7, 4096])
def test_nfm(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRAM_ROWS", rows)
    check(NFM(coefficient=0.3), "nfm", lambda W: 0.3 * torch.linalg.matrix_norm(matrix(W)))


@pytest.mark.parametrize("rows", [7, 4096])
def test_nfm_inf_looks_at_the_others(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "block_rows", lambda num_latents, device: rows)
    check(NFMInf(coefficient=0.3), "nfm_inf", lambda W: 0.3 * off_diagonal(W).amax(1).mean())


def test_files_of_version_0_1_still_open() -> None:
    former = {"coefficient": 0.3, "sample": None, "include_diagonal": False}
    assert NFMInf.model_validate(former) == NFMInf(coefficient=0.3)
    with pytest.raises(ValidationError, match="include_diagonal"):
        NFMInf.model_validate(former | {"include_diagonal": True})


def test_a_sample_estimates_nfm_inf_without_bias() -> None:
    exact, sampled = make_batch(), [make_batch(step) for step in range(400)]
    add(NFMInf(coefficient=0.3), exact)
    for batch in sampled:
        add(NFMInf(coefficient=0.3, sample=10), batch)
    values = torch.stack([batch.outcome.losses["nfm_inf"] for batch in sampled])
    assert float(values.mean()) == pytest.approx(float(exact.outcome.losses["nfm_inf"]), rel=0.01)
    gradient = torch.stack([batch.gradients["W_dec"] for batch in sampled]).mean(0)
    wanted = exact.gradients["W_dec"]
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.15
    assert len(values.unique()) > 300
