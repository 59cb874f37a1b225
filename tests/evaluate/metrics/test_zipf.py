"""Zipf's law: known laws come back, fits agree with scipy's and scikit-learn's, dying latents."""

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from sklearn.metrics import r2_score

from saecache.evaluate.metrics.zipf import expected_density, find_dying, fit_zipf
from saecache.evaluate.results import ZipfFit, ZipfLaw


def law_density(alpha: float, beta: float, scale: float, latents: int) -> np.ndarray:
    return scale * (np.arange(1, latents + 1) + beta) ** -alpha


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 6.8), (0.6, 0.0), (2.5, 120.0), (1.0, 5000.0)])
def test_an_exact_law_comes_back_in_any_order(alpha: float, beta: float) -> None:
    density = law_density(alpha, beta, 0.2 * (1 + beta) ** alpha, 3000)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(density))
    law = fit_zipf(shuffled)
    assert law is not None
    for fit in (law.log, law.linear):
        assert fit.alpha == pytest.approx(alpha, rel=2e-3)
        assert fit.beta == pytest.approx(beta, rel=5e-3, abs=1e-3)
        assert fit.r2 == pytest.approx(1, abs=1e-7)
        assert expected_density(fit, 3000) == pytest.approx(density, rel=1e-3)
    assert law.num_alive == 3000


def noisy_density() -> np.ndarray:
    random = np.random.default_rng(1)
    density = law_density(1.2, 20.0, 5.0, 800) * np.exp(0.2 * random.standard_normal(800))
    return np.sort(density)[::-1]


def test_fits_of_noisy_densities_are_scipys() -> None:
    density = noisy_density()
    rank = np.arange(1, 801.0)
    law = fit_zipf(torch.from_numpy(np.append(density, np.zeros(50))))  # dead latents take no part
    assert law is not None
    log, _ = curve_fit(lambda i, a, b, c: c - a * np.log(i + b), rank, np.log(density), p0=[1, 7, 0])
    assert (law.log.alpha, law.log.beta, np.log(law.log.scale)) == pytest.approx(log, rel=1e-3)
    linear, _ = curve_fit(
        lambda i, a, b, c: np.exp(c) * (i + b) ** -a, rank, density, p0=[1, 7, 0], maxfev=20_000
    )
    assert (law.linear.alpha, law.linear.beta, np.log(law.linear.scale)) == pytest.approx(linear, rel=1e-2)
    fitted = expected_density(law.log, 800)
    assert law.log.r2 == pytest.approx(r2_score(np.log(density), np.log(fitted)), abs=1e-9)
    assert law.linear.r2 == pytest.approx(r2_score(density, expected_density(law.linear, 800)), abs=1e-9)
    assert law.linear.r2 >= r2_score(density, fitted)
    assert law.num_alive == 800


@pytest.mark.parametrize("latents_of_one_e", [60, 20, 5])
def test_the_scale_of_densities_that_fall_exponentially_is_a_number(latents_of_one_e: int) -> None:
    """The best alpha and beta grow without end there; JSON has no infinite numbers."""
    density = 0.4 * np.exp(-np.arange(1152) / latents_of_one_e)
    law = fit_zipf(torch.from_numpy(density))
    assert law is not None
    for fit in (law.log, law.linear):
        assert np.isfinite([fit.alpha, fit.beta, fit.scale, fit.r2]).all()
        assert np.isfinite(expected_density(fit, 1152)).all()
    assert law.log.r2 > 0.9 and law.linear.r2 > 0.9
    assert ZipfLaw.model_validate_json(law.model_dump_json()) == law


def test_too_few_or_equal_densities_have_no_law() -> None:
    assert fit_zipf(torch.tensor([0.5, 0.1, 0.0])) is None
    assert fit_zipf(torch.full((100,), 0.25)) is None
    assert find_dying(torch.zeros(10), None).tolist() == []


def test_dying_latents_are_those_of_the_definition() -> None:
    """By loops over Definition 3.1."""
    random = np.random.default_rng(3)
    fit = ZipfFit(alpha=1.0, beta=6.8, scale=2.0, r2=1.0)
    law = ZipfLaw(log=fit, linear=fit, num_alive=400)
    density = law_density(1.0, 6.8, 2.0, 400)
    density[290:310] *= 0.75
    density[310:340] *= 0.7  # not low enough, in the last quarter
    density[340:] *= 0.5
    density[380:] = 0  # dead
    assert (np.diff(density) <= 0).all()
    order = random.permutation(400)
    given = np.empty(400)
    given[order] = density
    expected = set()
    for i in range(400):  # rank i + 1
        later = range(i, 400)
        if i + 1 > 300 and all(density[j] / (2.0 / (j + 1 + 6.8)) < 0.6 for j in later):
            expected.add(int(order[i]))
    assert len(expected) == 60
    assert set(find_dying(torch.from_numpy(given), law).tolist()) == expected
