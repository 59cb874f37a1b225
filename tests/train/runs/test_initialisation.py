"""Initial parameters: the geometric median equals a minimizer's, and the decoder has the promised rows."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from saecache.common.errors import SaecacheError
from saecache.train.runs import initialisation
from saecache.train.runs.config import InitialisationConfig
from saecache.train.runs.initialisation import geometric_median, initial_parameters
from saecache.train.variants.base.variant import Plan


def total_distance(point: np.ndarray, rows: torch.Tensor) -> float:
    return float((rows.double() - torch.from_numpy(point)).norm(dim=1).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_geometric_median_minimizes_the_sum_of_distances(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(200, 5, generator=generator).exp()  # skewed: mean and median are far apart
    found = geometric_median(rows).double().numpy()
    best = minimize(total_distance, rows.mean(0).double().numpy(), args=(rows,), tol=1e-12)
    assert total_distance(found, rows) <= best.fun * (1 + 1e-9)
    assert np.linalg.norm(found - rows.mean(0).numpy()) > 0.1


def test_far_outliers_do_not_move_it() -> None:
    rows = torch.zeros(101, 3)
    rows[:20] = 1000.0
    assert float(geometric_median(rows).abs().max()) < 1e-4


def test_an_estimate_that_falls_on_a_row_moves_on_or_stays_rightly() -> None:
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    on_the_mean = torch.cat([corners, torch.zeros(1, 2)])
    assert torch.equal(geometric_median(on_the_mean), torch.zeros(2))
    lopsided = torch.tensor([[0.0], [0.0], [0.0], [6.0], [-6.0], [9.0], [9.0], [-18.0]])  # mean 0 is a row
    assert float(geometric_median(lopsided).abs()) < 1e-6


def test_equal_rows() -> None:
    assert geometric_median(torch.full((4, 2), 3.0)).tolist() == [3.0, 3.0]


def test_no_convergence_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialisation, "MEDIAN_ITERATIONS", 1)
    with pytest.raises(
        SaecacheError, match=r"did not converge in 1 steps; set initialisation\.decoder_bias=zeros"
    ):
        geometric_median(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).exp())


def test_encoder_is_half_the_decoder_transposed() -> None:
    plan = Plan(d_model=8, num_latents=32, batch_rows=4, num_steps=1)
    parameters = initial_parameters(plan, 7, torch.arange(8.0))
    torch.testing.assert_close(parameters["W_dec"].norm(dim=1), torch.ones(32))
    assert torch.equal(parameters["W_enc"], 0.5 * parameters["W_dec"])
    assert parameters["b_enc"].tolist() == [0] * 32
    assert parameters["b_dec"].tolist() == list(range(8))
    assert torch.equal(initial_parameters(plan, 7, torch.zeros(8))["W_dec"], parameters["W_dec"])
    assert not torch.equal(initial_parameters(plan, 8, torch.zeros(8))["W_dec"], parameters["W_dec"])


def test_orthogonal_directions_come_in_sets_of_the_width() -> None:
    plan = Plan(d_model=8, num_latents=20, batch_rows=4, num_steps=1)
    config = InitialisationConfig(directions="orthogonal")
    W_dec = initial_parameters(plan, 0, torch.zeros(8), config)["W_dec"]
    for rows in W_dec.split(8):
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-6, rtol=0)
    assert float((W_dec[:8] @ W_dec[8:16].T).abs().max()) > 0.1, "the sets are drawn anew"
    assert torch.equal(initial_parameters(plan, 0, torch.zeros(8), config)["W_dec"], W_dec)
    assert not torch.equal(initial_parameters(plan, 1, torch.zeros(8), config)["W_dec"], W_dec)


def test_orthogonal_directions_are_uniform() -> None:
    """The first entry of a rotated axis has mean 0 and variance 1 / D, whatever LAPACK does with signs."""
    plan = Plan(d_model=16, num_latents=16 * 200, batch_rows=4, num_steps=1)
    first = initial_parameters(plan, 0, torch.zeros(16), InitialisationConfig(directions="orthogonal"))[
        "W_dec"
    ][::16]
    assert float(first.mean(0).abs().max()) < 4 * (1 / 16 / 200) ** 0.5
    assert float((first.var(0) * 16 - 1).abs().max()) < 0.45


def test_an_independent_encoder_is_drawn_for_itself() -> None:
    plan = Plan(d_model=8, num_latents=32, batch_rows=4, num_steps=1)
    tied = initial_parameters(plan, 0, torch.zeros(8))
    free = initial_parameters(plan, 0, torch.zeros(8), InitialisationConfig(encoder="independent"))
    assert torch.equal(free["W_dec"], tied["W_dec"])
    assert float((free["W_enc"] * free["W_dec"]).sum(1).abs().mean()) < 0.6
    torch.testing.assert_close(free["W_enc"].norm(dim=1), torch.full((32,), 0.5))


@pytest.mark.parametrize("encoder", ["tied", "independent"])
def test_the_encoder_starts_with_the_norm_asked_for(encoder: str) -> None:
    plan = Plan(d_model=6, num_latents=20, batch_rows=4, num_steps=1)
    config = InitialisationConfig(encoder=encoder, encoder_norm=0.3)
    parameters = initial_parameters(plan, 0, torch.zeros(6), config)
    torch.testing.assert_close(parameters["W_enc"].norm(dim=1), torch.full((20,), 0.3))
    torch.testing.assert_close(parameters["W_dec"].norm(dim=1), torch.ones(20))
    tied = torch.allclose(parameters["W_enc"], 0.3 * parameters["W_dec"])
    assert tied == (encoder == "tied")
