"""The counts equal Algorithm 1 in exact arithmetic, line by line."""

from fractions import Fraction

import pytest
import torch

from saecache.train.variants.base.zipf import Zipf


def algorithm_1(k: int, F: int, B: int, beta: Fraction, m_max: int) -> list[int]:
    """For alpha = 1."""
    num_interactions = B * k
    zipf_sum = sum(1 / (i + beta) for i in range(1, F + 1))
    n_approx = num_interactions / zipf_sum
    return [min(n_approx // (i + beta), m_max) for i in range(1, F + 1)]


@pytest.mark.parametrize("m_max", [10**6, 100])
@pytest.mark.parametrize(("k", "F", "B"), [(32, 300, 1536), (5, 96, 256), (60, 700, 4096)])
def test_rows_are_algorithm_1(k: int, F: int, B: int, m_max: int) -> None:
    wanted = algorithm_1(k, F, B, Fraction(68, 10), m_max)
    assert Zipf(max_rows=m_max).rows(k, F, B).tolist() == [min(m, B) for m in wanted]


def test_golden_counts() -> None:
    assert Zipf().rows(4, 10, 64).tolist() == [38, 33, 30, 27, 25, 23, 21, 20, 18, 17]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_without_floor_and_cap_the_budget_is_spent(alpha: float) -> None:
    zipf = Zipf(alpha=alpha, beta=30.0)
    expected = zipf.expected_rows(8, 1000, 4096)
    assert float(expected.sum()) == pytest.approx(8 * 4096)
    assert bool((expected.diff() < 0).all())
    ratio = expected[9] / expected[99]
    assert float(ratio) == pytest.approx(((100 + 30) / (10 + 30)) ** alpha)
    rows = zipf.rows(8, 1000, 4096)
    assert 8 * 4096 - 1000 < int(rows.sum()) <= 8 * 4096


def test_no_latent_gets_more_rows_than_there_are() -> None:
    steep = Zipf(alpha=3.0, beta=0.0)
    assert int(steep.rows(8, 100, 64).max()) == 64
    assert torch.equal(steep.rows(8, 100, 64), Zipf(alpha=3.0, beta=0.0, max_rows=1000).rows(8, 100, 64))


def test_alpha_0_is_uniform() -> None:
    assert Zipf(alpha=0.0).rows(3, 30, 100).tolist() == [10] * 30


@pytest.mark.parametrize("settings", [{"beta": -1.0}, {"alpha": -0.1}, {"max_rows": 0}, {"gamma": 1}])
def test_impossible_laws_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Zipf.model_validate(settings)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(700, 20), (1e308, 5), (1, 1e308), (1e308, -0.5), (8, -1 + 2**-53)]
)
def test_laws_whose_weights_float64_does_not_hold_are_refused(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match="take a smaller alpha"):
        Zipf(alpha=alpha, beta=beta)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(90, 10), (0, 1e308), (1e308, 0), (5, -1 + 2**-53), (0.3, 1e300)]
)
def test_laws_at_the_limits_have_counts(alpha: float, beta: float) -> None:
    rows = Zipf(alpha=alpha, beta=beta).rows(8, 1000, 64)
    assert 0 <= int(rows.min()) <= int(rows.max()) <= 64
