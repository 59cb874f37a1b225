"""Figures as data: fronts and curves against independent formulas, and files that hold the same numbers."""

import csv
import itertools
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import run
from saecache.evaluate.report import write_figures, write_report
from saecache.evaluate.report.data import gather
from saecache.evaluate.report.figures import make_figures
from saecache.evaluate.report.pareto import pareto_front
from saecache.evaluate.results import read_results

from .test_page import Elements


@pytest.mark.parametrize("high_y", [False, True])
def test_a_front_is_what_no_point_beats(high_y: bool) -> None:
    random = np.random.default_rng(0)
    for size in range(12):
        points = [(float(x), float(y)) for x, y in random.integers(0, 6, (size, 2))]

        def beats(p, q) -> bool:
            better = p[1] >= q[1] if high_y else p[1] <= q[1]
            return p[0] <= q[0] and better and p != q

        expected = {q for q in points if not any(beats(p, q) for p in points)}
        assert pareto_front(points, high_y=high_y) == sorted(expected)


@pytest.fixture
def measured(run_dir, cache, model) -> Path:
    run([run_dir], cache, model=model, show_progress=False)
    return run_dir


def figures_of(run_dir: Path) -> dict[str, object]:
    return {f"{f.section}/{f.title}": f for f in make_figures(gather([run_dir], None, 0).entries)}


def test_series_are_the_numbers_of_the_results(measured) -> None:
    figures, results = figures_of(measured), read_results(measured / "results.json")
    for number, sae in enumerate(results.saes):
        assert figures["pareto/L0 and MSE"].series[number].points == [(sae.codes.l0, sae.normalized.mse)]
        cost = figures["pareto/L0 and CE loss recovered"].series[number]
        assert cost.points == [(sae.codes.l0, sae.language_model.ce_recovered)]
        intervals = [*sae.codes.intervals["l0"], *sae.language_model.intervals["ce_recovered"]]
        assert cost.intervals == [intervals]
        steps = figures["features/Progressive codes"].series[number].points
        assert steps == [(step.l0, step.fvu) for step in sae.progressive]
        curve = figures["density/Density by rank"].series[number]
        assert [rank for rank, _ in curve.points] == sae.density.rank
        law = sae.zipf.log
        for rank, value in curve.fit:
            assert value == pytest.approx(law.scale / (rank + law.beta) ** law.alpha, rel=1e-4)
        assert len(curve.fit) > 10
        alive = figures["training/Alive latents"].series[number].points
        assert alive[:3] == [(64 * step, sae.num_latents - step % 7) for step in (1, 2, 3)]
        cumulative = figures["features/Cumulative"].series[number].points
        histogram = sae.features_per_token
        assert cumulative[-1] == (histogram.edges[-1] - 1, pytest.approx(1))
        shares = figures["features/Active latents per token"].series[number]
        edges = [*(x for x, _ in shares.points), shares.end]
        area = sum(
            y * (b - a) for (_, y), (a, b) in zip(shares.points, itertools.pairwise(edges), strict=True)
        )
        assert area == pytest.approx(1)


def test_calibration_probing_and_absorption_are_drawn_where_they_are_measured(measured, tmp_path) -> None:
    before = Elements(write_report([measured], tmp_path / "r.html").read_text("utf-8"))
    assert not any(f["section"] == "calibration" for f in json.loads(before.data)["figures"])
    path = measured / "results.json"
    values = json.loads(path.read_text())
    buckets = [
        {
            "low": 20 * i,
            "high": 20 * i + 20,
            "num_latents": 150,
            "mean": 0.6 + i / 20,
            "interval": [0.5, 0.9],
        }
        for i in range(5)
    ]
    calibration = {"buckets": buckets, "correlation": 0.5, "num_latents": 150}
    judged = {"judge": "j", "prompts_sha256": "0", "settings": {}, "rows": 9, "windows": 9, "alive": 9}
    judged |= {"too_few_windows": 0, "skipped": [], "unanswered": {}, "latents": []}
    judged |= {"detection": None, "fuzzing": None, "calibration": calibration}
    values["saes"][1]["interpretation"] = judged
    accuracy = {"accuracy": 0.8, "by_class": [0.8], "interval": [0.7, 0.9]}
    probing = {"data": "d", "classes": ["a"], "train_texts": 9, "test_texts": 9, "dense": accuracy}
    probing |= {"sparse": {"1": accuracy}, "model_sparse": {}, "model_dense": accuracy}
    for number, sae in enumerate(values["saes"]):
        sae["probing"] = [probing]
        absorbed = {"absorption_fraction": 0.1 * number, "intervals": {"absorption_fraction": [0.0, 0.5]}}
        sae["absorption"] = {"num_words": 9, **absorbed}
    path.write_text(json.dumps(values))
    figures = figures_of(measured)
    found = figures["calibration/Calibration"].series
    assert [len(series.points) for series in found] == [0, 5, 0]
    assert found[1].points == [(10, 0.6), (30, 0.65), (50, 0.7), (70, 0.75), (90, 0.8)]
    assert found[1].intervals[0] == [None, None, 0.5, 0.9]
    probed = figures["pareto/Absorption and probing"]
    assert [series.points for series in probed.series] == [[(0.1 * n, 0.8)] for n in range(3)]
    assert probed.series[0].intervals == [[0.0, 0.5, 0.7, 0.9]]
    assert probed.front == [(0.0, 0.8)]
    html = write_report([measured], tmp_path / "r.html").read_text("utf-8")
    assert 'id="calibration-figures"' in html
    assert '<a href="#calibration">' in html


def test_figures_as_svg_png_and_csv(measured, tmp_path) -> None:
    written = write_figures([measured], tmp_path / "figures")
    figures = figures_of(measured)
    assert len(written) == 3 * (len(figures) + 1)
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())
    for path in written:
        content = path.read_bytes()
        if path.suffix == ".svg":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        elif path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
    rows = list(csv.reader((tmp_path / "figures" / "pareto-l0-and-fvu.csv").read_text().splitlines()))
    results = read_results(measured / "results.json")
    assert rows[0][:2] == ["sae", "L0 (active latents per token)"]
    for row, sae in zip(rows[1:], results.saes, strict=True):
        assert row[0] == sae.name
        low_high = [*sae.codes.intervals["l0"], *sae.normalized.intervals["fvu"]]
        assert [float(v) for v in row[1:]] == [sae.codes.l0, sae.normalized.fvu, *low_high]
    overlap = list(csv.reader((tmp_path / "figures" / "overlap-mmcs.csv").read_text().splitlines()))
    (pair,) = results.overlap
    assert [pair.a, pair.b, str(pair.mmcs_a_in_b)] in overlap
    fits = list(csv.reader((tmp_path / "figures" / "density-density-by-rank.csv").read_text().splitlines()))
    assert fits[0][-1] == "fit"
    before = {path: path.read_bytes() for path in written}
    write_figures([measured], tmp_path / "figures")
    assert {path: path.read_bytes() for path in written} == before


def test_names_that_matplotlib_or_a_spreadsheet_would_read(measured, tmp_path) -> None:
    path = measured / "results.json"
    values = json.loads(path.read_text())
    for sae, name in zip(values["saes"], ("_hidden", "$x^", "=1+1"), strict=True):
        sae["name"] = name
    path.write_text(json.dumps(values))
    write_figures([measured], tmp_path)
    svg = (tmp_path / "pareto-l0-and-fvu.svg").read_text()
    assert "_hidden" in svg
    assert "$x^" in svg
    names = [row[0] for row in csv.reader((tmp_path / "pareto-l0-and-fvu.csv").read_text().splitlines())]
    assert names[1:] == ["_hidden", "$x^", "'=1+1"]


def test_without_matplotlib_the_extra_is_named(measured, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'saecache\[figures\]'"):
        write_figures([measured], tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        write_figures([measured], tmp_path / "file")
