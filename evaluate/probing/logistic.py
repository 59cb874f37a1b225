"""Logistic regression with an L2 penalty, on dense or sparse inputs, to the optimum.

It is the problem of scikit-learn's ``LogisticRegression``, solved by the same routine of scipy, so that
probing needs no further package. Legend: n examples, d inputs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ..metrics.bootstrap import Floats

# Where classes are nearly separable, the last digits take thousands of iterations.
_OPTIONS = {"maxcor": 20, "gtol": 1e-6, "ftol": 1e-11, "maxiter": 1000, "maxfun": 2000}


@dataclass(frozen=True)
class LogisticProbe:
    """Logit = inputs @ weight + bias. ``weight`` float64 [d]."""

    weight: Floats
    bias: float

    def logits(self, x_nd: Any) -> Floats:
        """The logits of inputs [n, d], dense or a scipy sparse array: float64 [n]. Above 0 means yes."""
        logits: Floats = np.asarray(x_nd @ self.weight).reshape(-1) + self.bias
        return logits


def fit_logistic(
    x_nd: Any, y_n: np.ndarray, *, l2: float = 1.0, example_weight_n: np.ndarray | None = None
) -> LogisticProbe:
    """Minimize sum_i a_i log(1 + exp(-±logit_i)) + l2/2 |w|². The bias is free.

    Args:
        x_nd: inputs, dense float or a scipy sparse array.
        y_n: bool [n]; both classes occur.
        l2: 1 / C of scikit-learn.
        example_weight_n: a_i; 1 for all if None.

    Raises:
        ValueError: all examples are of one class.
    """
    if y_n.all() or not y_n.any():
        raise ValueError("a probe needs examples of both classes")
    n, d = x_nd.shape
    sign = np.where(y_n, 1.0, -1.0)
    a = np.ones(n) if example_weight_n is None else example_weight_n
    scale = 1 / a.sum()  # the gradient's tolerance then does not depend on the number of examples
    transposed = x_nd.T

    def objective(parameters: Floats) -> tuple[float, Floats]:
        """The scaled objective and its gradient."""
        weight, bias = parameters[:d], parameters[d]
        margin = sign * (np.asarray(x_nd @ weight).reshape(-1) + bias)
        loss = float(a @ np.logaddexp(0, -margin)) + l2 / 2 * float(weight @ weight)
        pull = -a * sign * expit(-margin)
        gradient = np.asarray(transposed @ pull).reshape(-1) + l2 * weight
        return scale * loss, scale * np.append(gradient, pull.sum())

    found = minimize(objective, np.zeros(d + 1), jac=True, method="L-BFGS-B", options=_OPTIONS).x
    return LogisticProbe(found[:d], float(found[d]))


def balanced_weights(y_n: np.ndarray) -> Floats:
    """Weights that give both classes the same total, n / 2: float64 [n]; scikit-learn's ``balanced``."""
    positive = int(y_n.sum())
    return np.where(y_n, len(y_n) / (2 * positive), len(y_n) / (2 * (len(y_n) - positive)))


def f1_score(predicted_n: np.ndarray, y_n: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN), bool [n] each; 0 if nothing is predicted and nothing is true."""
    both, total = int((predicted_n & y_n).sum()), int(predicted_n.sum()) + int(y_n.sum())
    return 2 * both / total if total else 0.0
