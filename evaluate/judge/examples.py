"""Which windows a judge sees of a latent: to explain it, and, of other documents, to score the explanation.

Documents are divided between explaining and scoring, anew for each latent, so that no text is both explained
and scored. Inactive windows never come from documents that are explained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .activations import LatentActivations
from .config import DECILES, CalibrationConfig, WindowsConfig
from .windows import Ints, Windows, peaks_by_window

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Windows to be told apart, in the order in which the judge sees them.

    Attributes:
        window: int64 [n].
        stratum: int64 [n], the decile or bucket of an active window, 0 the weakest; -1 for an inactive one.
    """

    window: Ints
    stratum: Ints


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Windows of one bucket of activation: those that explain it, int64, and those that score it."""

    explain: Ints
    score: Scored


@dataclass(frozen=True, kw_only=True)
class LatentExamples:
    """What a judge sees of one latent.

    Attributes:
        num_active: windows in which it is active.
        buckets: from the weakest to the strongest; empty without calibration.
        without_buckets: why there are none although they are wanted.
    """

    latent: int
    column: LatentActivations
    num_active: int
    explain: Ints
    score: Scored
    buckets: Sequence[Bucket]
    without_buckets: str | None = None


class TooFewWindows(Exception):  # noqa: N818  # an answer more than an error: the latent is skipped
    """A latent has too few windows, or too few documents, to be judged; the message says which."""


def choose_examples(
    latent: int,
    column: LatentActivations,
    windows: Windows,
    settings: WindowsConfig,
    calibration: CalibrationConfig | None,
    seed: int,
) -> LatentExamples:
    """Choose the windows of one latent, a function of its activations, the settings and the seed.

    Raises:
        TooFewWindows: there are not enough.
    """
    random = np.random.default_rng([seed, latent])
    active, peak = peaks_by_window(windows, column.rows, column.values)
    least = max(settings.least, settings.explain + settings.score)
    if len(active) < least:
        raise TooFewWindows(f"it is active in {len(active)} windows, expected {least} or more")
    active = active[np.lexsort((active, peak))]  # from the weakest to the strongest
    to_explain = _divide_documents(
        windows.document[active], settings.explain / (settings.explain + settings.score), random
    )
    explained, scored = active[to_explain], active[~to_explain]
    if len(explained) < settings.explain or len(scored) < settings.score:
        raise TooFewWindows(
            f"the {len(np.unique(windows.document[active]))} documents in which it is active do not give "
            f"{settings.explain} windows to explain it and {settings.score} of other documents to score it"
        )
    inactive = np.setdiff1d(np.arange(len(windows)), active, assume_unique=True)
    inactive = inactive[~np.isin(windows.document[inactive], windows.document[explained])]
    if len(inactive) < settings.score:
        raise TooFewWindows(
            f"it is inactive in {len(inactive)} windows of documents that are not explained, expected "
            f"{settings.score} or more"
        )

    def spread(candidates: Ints, most: int) -> Ints:
        return _spread_over_documents(candidates, windows.document[candidates], most, random)

    explain = np.concatenate(
        [spread(part, settings.explain // DECILES) for part in np.array_split(explained, DECILES)]
    )
    score = _mix(
        [spread(part, settings.score // DECILES) for part in np.array_split(scored, DECILES)],
        spread(inactive, settings.score),
        random,
    )
    buckets: list[Bucket] = []
    reason = None
    for number, part in enumerate(np.array_split(active, calibration.buckets) if calibration else []):
        assert calibration is not None
        own, others = part[np.isin(part, explained)], part[np.isin(part, scored)]
        if len(own) < calibration.explain or len(others) < calibration.score:
            reason = (
                f"bucket {number + 1} of {calibration.buckets} has {len(own)} windows to explain and "
                f"{len(others)} to score it, expected {calibration.explain} and {calibration.score}"
            )
            buckets = []
            break
        negatives = spread(inactive, calibration.score)
        mixed = _mix([spread(others, calibration.score)], negatives, random)
        stratum = np.where(mixed.stratum < 0, -1, number)
        buckets.append(
            Bucket(
                explain=spread(own, calibration.explain),
                score=Scored(window=mixed.window, stratum=stratum),
            )
        )
    return LatentExamples(
        latent=latent,
        column=column,
        num_active=len(active),
        explain=explain[::-1],  # the strongest first
        score=score,
        buckets=buckets,
        without_buckets=reason,
    )


def _divide_documents(document_n: Ints, share: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Which of n windows explain: whole documents, that together hold about ``share`` of the windows."""
    documents, number, counts = np.unique(document_n, return_inverse=True, return_counts=True)
    explains = np.zeros(len(documents), dtype=bool)
    taken, passed = 0, 0
    for one in random.permutation(len(documents)):
        explains[one] = taken * (1 - share) <= passed * share
        if explains[one]:
            taken += int(counts[one])
        else:
            passed += int(counts[one])
    return explains[number.reshape(-1)]


def _spread_over_documents(candidates: Ints, documents: Ints, most: int, random: np.random.Generator) -> Ints:
    """Draw at most ``most`` candidates: of every document one, then of every document a second one, ..."""
    order = random.permutation(len(candidates))
    shuffled = documents[order]
    by_document = np.argsort(shuffled, kind="stable")
    ranked = shuffled[by_document]
    occurrence = np.empty(len(order), dtype=np.int64)
    occurrence[by_document] = np.arange(len(order)) - np.searchsorted(ranked, ranked)
    return candidates[order[np.argsort(occurrence, kind="stable")[:most]]]


def _mix(strata: Sequence[Ints], inactive: Ints, random: np.random.Generator) -> Scored:
    """Shuffle active windows, by stratum, with inactive ones."""
    window = np.concatenate([*strata, inactive])
    stratum = np.concatenate(
        [*(np.full(len(part), i) for i, part in enumerate(strata)), np.full(len(inactive), -1)]
    )
    order = random.permutation(len(window))
    return Scored(window=window[order], stratum=stratum[order])
