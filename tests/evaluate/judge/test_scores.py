"""Scores, calibration and uniqueness against independent formulas."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from saecache.evaluate.judge.calibration import measure_calibration
from saecache.evaluate.judge.scores import score_marks
from saecache.evaluate.judge.uniqueness import ExplainedSAE, find_unique
from saecache.train.sae import SAE

from .conftest import WIDTH, make_word_sae


def marks_of(seed: int, num: int = 200) -> tuple[list[bool | None], np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    stratum = np.where(random.random(num) < 0.5, -1, random.integers(0, 10, num))
    said = random.random(num) < np.where(stratum < 0, 0.2, 0.4 + 0.05 * stratum)
    missing = random.random(num) < 0.1
    marks = [None if gone else bool(mark) for gone, mark in zip(missing, said, strict=True)]
    return marks, stratum, random.integers(0, 40, num)


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_is_that_of_sklearn(seed: int) -> None:
    marks, stratum, document = marks_of(seed)
    score = score_marks(marks, stratum, document, 10, 0)
    known = np.asarray([mark is not None for mark in marks])
    truth, said = (stratum >= 0)[known], np.asarray([bool(mark) for mark in marks])[known]
    assert score.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, said))
    assert (score.answered, score.unanswered) == (known.sum(), (~known).sum())
    for number in range(10):
        part = (stratum[known] == number) | (stratum[known] < 0)
        expected = balanced_accuracy_score(truth[part], said[part])
        assert score.strata[number] == pytest.approx(expected)


def test_the_interval_draws_documents() -> None:
    """Against a bootstrap in a loop; windows of a document that agree widen it."""
    random = np.random.default_rng(1)
    document = np.repeat(np.arange(30), 10)
    stratum = np.where(random.random(300) < 0.5, 0, -1)
    right = np.repeat(random.random(30) < 0.7, 10)
    marks = [bool(mark) for mark in (stratum >= 0) == right]
    score = score_marks(marks, stratum, document, 0, 0)
    draws = []
    for _ in range(2000):
        index = np.concatenate([np.flatnonzero(document == d) for d in random.integers(0, 30, 30)])
        draws.append(balanced_accuracy_score((stratum >= 0)[index], np.asarray(marks)[index]))
    assert score.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.03)
    alone = score_marks(marks, stratum, np.arange(300), 0, 0)
    assert alone.interval is not None and score.interval is not None
    assert alone.interval[1] - alone.interval[0] < 0.6 * (score.interval[1] - score.interval[0])


def test_what_was_not_answered_gives_no_figure() -> None:
    nothing = score_marks([None, None], np.asarray([0, -1]), np.asarray([0, 1]), 10, 0)
    assert nothing.balanced_accuracy is None and nothing.strata == [None] * 10
    half = score_marks([True, None], np.asarray([3, -1]), np.asarray([0, 1]), 10, 0)
    assert half.balanced_accuracy is None and half.true_positive_rate == 1
    assert half.true_negative_rate is None and half.unanswered == 1


def scores_of(num_latents: int, slope: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    ideal = 0.5 + slope * np.arange(5)
    return np.clip(
        ideal + random.normal(0, 0.08, (num_latents, 1)) + random.normal(0, 0.08, (num_latents, 5)), 0, 1
    )


@pytest.mark.parametrize(("num_latents", "slope"), [(150, 0.05), (20, 0.0), (1500, 0.02)])
def test_calibration_is_the_correlation_over_latents_and_buckets(num_latents: int, slope: float) -> None:
    scores = scores_of(num_latents, slope)
    scores[::7, 2] = np.nan
    found = measure_calibration(scores, 0)
    latent, bucket = np.nonzero(np.isfinite(scores))
    middle = np.asarray([10, 30, 50, 70, 90])[bucket]
    expected = np.corrcoef(middle, scores[latent, bucket])[0, 1]
    assert found.correlation == pytest.approx(expected)
    assert [one.mean for one in found.buckets] == pytest.approx(np.nanmean(scores, axis=0).tolist())
    assert found.num_latents == num_latents
    random = np.random.default_rng(5)
    draws = []
    for _ in range(1000):
        drawn = scores[random.integers(0, num_latents, num_latents)]
        rows, columns = np.nonzero(np.isfinite(drawn))
        draws.append(np.corrcoef(columns, drawn[rows, columns])[0, 1])
    assert found.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.05)


def test_calibration_of_too_little() -> None:
    empty = measure_calibration(np.full((3, 5), np.nan), 0)
    assert empty.correlation is None and empty.interval is None and empty.num_latents == 0
    assert [one.mean for one in empty.buckets] == [None] * 5
    flat = measure_calibration(np.full((20, 5), 0.5), 0)
    assert flat.correlation is None and flat.interval is None
    few = measure_calibration(scores_of(4, 0.1), 0)
    assert few.correlation is not None and few.interval is None  # too few latents for an interval


def test_best_matches_against_loops(word_cache) -> None:
    random = np.random.default_rng(0)
    saes: list[SAE] = []
    for seed in range(2):
        sae = make_word_sae(word_cache, f"sae{seed}")
        sae.W_dec = torch.from_numpy(random.normal(size=(WIDTH, WIDTH)).astype(np.float32))
        saes.append(sae)
    latents = [[0, 3, 9, 20], [5, 7, 11]]
    embeddings = [random.normal(size=(len(one), 6)).astype(np.float32) for one in latents]
    a, b = (
        ExplainedSAE(name=f"sae{i}", sae=saes[i], latents=latents[i], embedding=embeddings[i])
        for i in range(2)
    )
    found = find_unique(a, b, "encoder", 0)

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    decoders = [sae.W_dec.numpy() for sae in saes]
    for match in found.matches:
        i = latents[0].index(match.latent)
        similar = [
            (
                cosine(decoders[0][match.latent], decoders[1][j]) + cosine(embeddings[0][i], embeddings[1][n])
            ) / 2
            for n, j in enumerate(latents[1])
        ]  # fmt: skip
        assert match.match == latents[1][int(np.argmax(similar))]
        assert match.similarity == pytest.approx(max(similar), abs=1e-5)
        nearest = max(cosine(decoders[0][match.latent], row) for row in decoders[1])
        assert match.nearest_cosine == pytest.approx(nearest, abs=1e-5)
    assert found.mean_similarity == pytest.approx(np.mean([one.similarity for one in found.matches]))
    assert found.interval is None and (found.num_a, found.num_b) == (4, 3)
