"""Scores from a judge's marks: class-balanced accuracy, by decile, and its interval.

Balanced accuracy is the mean of the share of active windows that are found and the share of inactive ones
that are not taken for active: 0.5 for a judge that guesses, whatever it prefers to say.

Legend: n windows, G groups of documents, R draws.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..metrics.bootstrap import (
    Floats,
    Interval,
    draw_weights,
    group_documents,
    percentile_interval,
    ratio,
    sum_by_group,
)
from ..results import JudgeScore
from .windows import Ints


def score_marks(
    marks: Sequence[bool | None], stratum_n: Ints, document_n: Ints, num_strata: int, seed: int
) -> JudgeScore:
    """The score of one explanation.

    Args:
        marks: what the judge said of each window; None where it gave no usable answer. Such windows count
            as unanswered and in nothing else.
        stratum_n: the decile of each active window, from 0, the weakest; -1 for an inactive one.
        document_n: of each window, for the interval.
    """
    answered = np.asarray([mark is not None for mark in marks], dtype=bool)
    said = np.asarray([bool(mark) for mark in marks], dtype=bool)[answered]
    stratum, document = stratum_n[answered], document_n[answered]
    active = stratum >= 0
    found, kept_out = _share(said[active]), _share(~said[~active])
    deciles = [
        _balanced(_share(said[stratum == number]), kept_out) if kept_out is not None else None
        for number in range(num_strata)
    ]
    return JudgeScore(
        balanced_accuracy=_balanced(found, kept_out),
        true_positive_rate=found,
        true_negative_rate=kept_out,
        strata=deciles,
        answered=int(answered.sum()),
        unanswered=int((~answered).sum()),
        interval=_interval(said == active, active, document, seed),
    )


def _share(true_n: NDArray[np.bool_]) -> float | None:
    return float(true_n.mean()) if len(true_n) else None


def _balanced(found: float | None, kept_out: float | None) -> float | None:
    return None if found is None or kept_out is None else (found + kept_out) / 2


def _interval(
    right_n: NDArray[np.bool_], active_n: NDArray[np.bool_], document_n: Ints, seed: int
) -> Interval | None:
    """Whole documents are drawn, because windows of one document resemble each other."""
    group, num_groups = group_documents(document_n)
    weights_RG = draw_weights(num_groups, seed)
    if weights_RG is None:
        return None

    def rate(which: NDArray[np.bool_]) -> Floats:
        right, all_ = (
            weights_RG @ sum_by_group(group[which], value, num_groups)
            for value in (right_n[which].astype(np.float64), None)
        )
        return ratio(right, all_)

    return percentile_interval((rate(active_n) + rate(~active_n)) / 2)
