"""Linear probes of all letters at once, trained as SAEBench's ``absorption`` trains them.

The training is a part of that metric's definition: 50 passes of Adam, in which a bias can move by less than
1. At the optimum of the same loss biases are far below 0 and activations project much further on the
directions of the probes, so that latents hold a smaller share of them and far less absorption is found.
Legend: n words, d inputs (latents or activations), C letters, B words of a batch.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from scipy.special import expit

from ..metrics.bootstrap import Floats
from .letters import LETTERS
from .logistic import LogisticProbe

PASSES, BATCH_WORDS = 50, 4096
FIRST_RATE, LAST_RATE = 1e-2, 1e-5  # learning rates; the last one would be that of the pass after the last
_BETAS, _EPS = (0.9, 0.999), 1e-8


def train_letter_probes(
    x_nd: Any, letter_n: np.ndarray, letters: Sequence[int], *, l1: float, weight_decay: float, seed: int
) -> list[LogisticProbe]:
    """Train a probe of each of ``letters`` against all other letters.

    The loss is the mean over words and the 26 letters of the cross-entropy, in which the words of a letter
    weigh as much as all others, plus the mean over letters of ``l1`` |w|_1. Adam adds ``weight_decay`` w to
    its gradient.

    Args:
        x_nd: inputs, float [n, d], dense or a scipy sparse array.
        letter_n: of each word, int [n], an index into :data:`LETTERS`; every one of ``letters`` occurs.
        seed: of the initial weights and of the order of the words.
    """
    random = np.random.default_rng(seed)
    n, d = x_nd.shape
    y_nC = letter_n[:, None] == np.asarray(letters)
    positive_C = (~y_nC).sum(0) / y_nC.sum(0)
    bound = 1 / sqrt(d)
    state = random.uniform(-bound, bound, (len(letters), d + 1))  # the last column is the bias
    mean, square = np.zeros((2, *state.shape))
    decay = (LAST_RATE / FIRST_RATE) ** (1 / PASSES)
    step = 0
    for number in range(PASSES):
        order = random.permutation(n)
        for start in range(0, n, BATCH_WORDS):
            rows = order[start : start + BATCH_WORDS]
            gradient = _gradient(state, x_nd[rows], y_nC[rows], positive_C)
            gradient[:, :-1] += l1 / len(LETTERS) * np.sign(state[:, :-1])
            gradient += weight_decay * state
            step += 1
            mean += (1 - _BETAS[0]) * (gradient - mean)
            square += (1 - _BETAS[1]) * (gradient**2 - square)
            size = np.sqrt(square / (1 - _BETAS[1] ** step)) + _EPS
            state -= FIRST_RATE * decay**number * mean / (1 - _BETAS[0] ** step) / size
    return [LogisticProbe(row[:-1].copy(), float(row[-1])) for row in state]


def _gradient(state: Floats, x_Bd: Any, y_BC: np.ndarray, positive_C: Floats) -> Floats:
    """The gradient of the mean cross-entropy, float64 [C, d + 1]."""
    logit_BC = np.asarray(x_Bd @ state[:, :-1].T) + state[:, -1]
    pull_BC = np.where(y_BC, -positive_C * expit(-logit_BC), expit(logit_BC)) / (len(y_BC) * len(LETTERS))
    by_input = np.asarray(x_Bd.T @ pull_BC).T
    return np.concatenate([by_input, pull_BC.sum(0)[:, None]], axis=1)
