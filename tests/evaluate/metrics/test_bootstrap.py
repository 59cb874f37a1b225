"""Intervals against scipy's bootstrap, against rows that are really drawn, and their coverage."""

import numpy as np
import pytest
import torch
from scipy import stats

from saecache.evaluate.metrics import CodeStream, ReconstructionStream, bootstrap
from saecache.evaluate.metrics.bootstrap import (
    MAX_GROUPS,
    MIN_GROUPS,
    draw_weights,
    group_documents,
    intervals_of,
    mean_interval,
    percentile_interval,
)
from saecache.train import Pairs


def test_documents_become_groups_without_gaps() -> None:
    group, count = group_documents(np.array([7, 7, 3, 100, 3]))
    assert (group.tolist(), count) == ([1, 1, 0, 2, 0], 3)
    many = np.arange(3 * MAX_GROUPS + 5)
    group, count = group_documents(many)
    assert count == MAX_GROUPS
    assert set(group.tolist()) == set(range(MAX_GROUPS))
    assert np.bincount(group).max() - np.bincount(group).min() <= 1


def test_draws_are_seeded_and_of_as_many_groups() -> None:
    weights = draw_weights(40, seed=3)
    assert weights is not None
    assert (weights.sum(1) == 40).all()
    assert np.array_equal(weights, draw_weights(40, seed=3))
    assert not np.array_equal(weights, draw_weights(40, seed=4))
    assert draw_weights(MIN_GROUPS - 1, seed=0) is None


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=300)
    found = mean_interval(values, seed=1)
    assert found is not None
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = expected.high - expected.low
    assert found[0] == pytest.approx(expected.low, abs=0.1 * width)
    assert found[1] == pytest.approx(expected.high, abs=0.1 * width)
    assert mean_interval(values[:5], seed=1) is None


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    inside = 0
    for trial in range(300):
        low, high = mean_interval(random.normal(2.0, 1.0, size=80), seed=trial)
        inside += low <= 2.0 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_draws_without_a_value_give_no_interval() -> None:
    assert percentile_interval(np.array([1.0, np.nan])) is None
    assert percentile_interval(np.zeros(0)) is None
    assert list(intervals_of({"a": np.array([1.0, 2.0]), "b": np.array([np.inf, 1.0])})) == ["a"]


def dependent_rows(documents: int = 20, each: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows whose error depends on their document, reconstructions, and the document of each row."""
    random = torch.Generator().manual_seed(0)
    document = torch.arange(documents).repeat_interleave(each)
    x = (
        torch.randn(documents * each, 5, generator=random)
        + torch.randn(documents, 5, generator=random)[document]
    )
    size = torch.rand(documents, generator=random)[document]
    return x, x + size[:, None] * torch.randn(x.shape, generator=random), document


def test_fidelity_of_a_draw_is_that_of_the_drawn_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows repeated as often as their document was drawn, in float64."""
    monkeypatch.setattr(bootstrap, "DRAWS", 30)
    x, reconstruction, document = dependent_rows()
    stream = ReconstructionStream(20)
    for part in torch.arange(len(x)).split(37):
        stream.update(x[part], reconstruction[part], document[part])
    weights = draw_weights(20, seed=9)
    assert weights is not None
    values: dict[str, list[float]] = {"fvu": [], "mse": [], "cosine": []}
    for weight in weights:
        rows = np.repeat(np.arange(len(x)), weight[document.numpy()].astype(int))
        a, b = x.double().numpy()[rows], reconstruction.double().numpy()[rows]
        values["fvu"].append(((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum())
        values["mse"].append(((a - b) ** 2).mean())
        values["cosine"].append(
            ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        )
    for name, interval in stream.result(seed=9).intervals.items():
        assert interval == pytest.approx(np.quantile(values[name], [0.025, 0.975]), rel=1e-9)
    assert set(stream.result(seed=9).intervals) == set(values)


def test_documents_make_wider_intervals_than_rows() -> None:
    x, reconstruction, document = dependent_rows()
    widths = []
    for groups, group in ((20, document), (len(x), torch.arange(len(x)))):
        stream = ReconstructionStream(groups)
        stream.update(x, reconstruction, group)
        result = stream.result()
        low, high = result.intervals["mse"]
        assert low < result.mse < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_l0_and_l1_by_document_and_few_documents_without_intervals() -> None:
    random = torch.Generator().manual_seed(1)
    dense = torch.rand(200, 30, generator=random) * (torch.rand(200, 30, generator=random) < 0.2)
    document = torch.arange(200) // 10
    stream = CodeStream(30, 20)
    for part in torch.arange(200).split(33):
        stream.update(Pairs.from_dense(dense[part]), document[part])
    result = stream.result()
    by_document = (dense != 0).sum(1).double().reshape(20, 10).mean(1).numpy()  # documents of one length
    weights = draw_weights(20, seed=0)
    assert weights is not None
    expected = np.quantile(weights @ by_document / 20, [0.025, 0.975])
    assert result.intervals["l0"] == pytest.approx(expected, rel=1e-9)
    assert result.intervals["l1"][0] < result.l1 < result.intervals["l1"][1]
    few = CodeStream(30, 5)
    few.update(Pairs.from_dense(dense), torch.arange(200) % 5)
    assert few.result().intervals == {}
