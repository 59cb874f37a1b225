"""Metrics follow their definitions, and their file survives crashes."""

import json
from pathlib import Path

import pytest
import torch

from saecache.common.fvu import RowVariance
from saecache.train.engine.metrics import Interval, MetricsFile, histogram_quantiles, reset
from saecache.train.variants.base.rows import Outcome

CPU = torch.device("cpu")


def test_fvu_is_centered_and_summed_over_the_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(50, 4, generator=generator) + 10 for _ in range(3)]
    errors = [0.1 * torch.randn(50, 4, generator=generator) for _ in range(3)]
    inputs, interval = RowVariance(4, CPU), Interval(6, CPU)
    for x, error in zip(batches, errors, strict=True):
        inputs.add(x)
        outcome = Outcome.empty(6, CPU)
        outcome.squared_error += error.double().square().sum()
        outcome.add_loss("mse", outcome.squared_error / 50)
        outcome.add_loss("aux", torch.tensor(0.25, dtype=torch.float64))
        outcome.row_l0.append(torch.arange(50) % 5)
        interval.add(outcome, torch.tensor(2.0, dtype=torch.float64))
    summary = interval.summary(inputs)
    x, error = torch.cat(batches).double(), torch.cat(errors).double()
    assert summary["fvu"] == pytest.approx(float(error.square().sum() / (x - x.mean(0)).square().sum()))
    assert summary["loss_mse"] == pytest.approx(float(error.square().sum()) / 150)
    assert summary["loss"] == pytest.approx(summary["loss_mse"] + 0.25)
    assert summary["l0"] == 2.0
    assert (summary["l0_p05"], summary["l0_p50"], summary["l0_p95"]) == (0, 2, 4)
    assert summary["grad_norm"] == 2.0

    reset(inputs, [interval])
    inputs.add(batches[0])
    interval.add(Outcome.empty(6, CPU), torch.tensor(1.0, dtype=torch.float64))
    assert interval.summary(inputs)["fvu"] == 0.0


def test_quantiles_of_a_histogram() -> None:
    histogram = torch.tensor([0, 10, 0, 80, 10])
    assert histogram_quantiles(histogram, {"a": 0.05, "b": 0.1, "c": 0.11, "d": 0.9, "e": 0.95}) == {
        "a": 1,
        "b": 1,
        "c": 3,
        "d": 3,
        "e": 4,
    }


def test_more_active_latents_than_the_histogram_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saecache.train.engine.metrics.MAX_L0", 3)
    inputs, interval = RowVariance(2, CPU), Interval(10, CPU)
    inputs.add(torch.randn(2, 2))
    outcome = Outcome.empty(10, CPU)
    outcome.row_l0.append(torch.tensor([9, 9]))
    interval.add(outcome, torch.tensor(0.0, dtype=torch.float64))
    summary = interval.summary(inputs)
    assert (summary["l0"], summary["l0_p50"]) == (9.0, 3)


def test_resuming_cuts_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.cut_after(0)  # nothing there yet
    metrics.append([{"step": step, "variant": "a"} for step in (2, 4, 6)])
    with metrics.path.open("a") as file:
        file.write('{"step": 8, "vari')
    metrics.cut_after(4)
    metrics.append([{"step": 6, "variant": "b"}])
    lines = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert lines == [
        {"step": 2, "variant": "a"},
        {"step": 4, "variant": "a"},
        {"step": 6, "variant": "b"},
    ]


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        MetricsFile(tmp_path / "metrics.jsonl").append([{"step": 1, "loss": float("nan")}])
