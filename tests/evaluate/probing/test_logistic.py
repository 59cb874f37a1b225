"""Logistic regression against scikit-learn's."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score as sklearn_f1_score

from saecache.evaluate.probing.logistic import balanced_weights, f1_score, fit_logistic


def examples(n: int = 300, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, d)) * (random.random((n, d)) < 0.4)
    return x, x[:, 0] - 0.5 * x[:, 1] + 0.8 * random.standard_normal(n) > 0.6


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("l2", [0.01, 1.0, 30.0])
def test_weights_are_scikit_learns(l2: float, sparse: bool) -> None:
    x, y = examples()
    probe = fit_logistic(csr_array(x) if sparse else x, y, l2=l2)
    expected = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(x, y)
    assert probe.weight == pytest.approx(expected.coef_[0], abs=1e-4)
    assert probe.bias == pytest.approx(expected.intercept_[0], abs=1e-4)
    inputs = csr_array(x) if sparse else x
    assert probe.logits(inputs) == pytest.approx(expected.decision_function(x), abs=1e-3)


def test_balanced_weights_are_scikit_learns() -> None:
    x, y = examples(seed=1)
    assert y.mean() < 0.4
    probe = fit_logistic(x, y, example_weight_n=balanced_weights(y))
    expected = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=5000).fit(x, y)
    assert probe.weight == pytest.approx(expected.coef_[0], abs=1e-4)


def test_one_class_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="both classes"):
        fit_logistic(np.zeros((3, 1)), np.ones(3, dtype=bool))


def test_f1_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        y, predicted = random.random((2, 30)) < random.random()
        assert f1_score(predicted, y) == pytest.approx(sklearn_f1_score(y, predicted, zero_division=0))
    assert f1_score(np.zeros(3, bool), np.zeros(3, bool)) == 0
