"""Whatever results.json, metrics.jsonl or an SAE to export holds: a report, an export, or our message."""

import json
import shutil
import sys
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import export_sae, run, write_report
from saecache.evaluate.report import write_figures
from saecache.evaluate.results import read_fitted_zipf, read_results

from ..hostile import (
    CASES,
    check_nothing_outside,
    damaged_json,
    in_its_place,
    mutated,
    replace_with,
    right_or_refused,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="FIFOs, and the peak of memory in /proc")


@pytest.fixture
def measured(run_dir, cache) -> Path:
    run([run_dir], cache, show_progress=False)
    assert {"results.json", "metrics.jsonl"} <= {path.name for path in run_dir.iterdir()}
    return run_dir


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl"])
def test_any_bytes_in_what_a_report_reads(name: str, measured: Path, tmp_path: Path) -> None:
    content = (measured / name).read_bytes()
    for seed in range(CASES):
        (measured / name).write_bytes(mutated(content, seed))
        right_or_refused(lambda: write_report([measured], tmp_path / "report.html"))


def test_any_value_in_results(measured: Path, tmp_path: Path) -> None:
    content = (measured / "results.json").read_bytes()
    for seed in range(2 * CASES):
        (measured / "results.json").write_bytes(damaged_json(content, seed))
        right_or_refused(lambda: write_report([measured], tmp_path / "report.html"))


def test_any_value_in_a_line_of_metrics(measured: Path, tmp_path: Path) -> None:
    first, *others = (measured / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for seed in range(CASES):
        lines = [damaged_json(first, seed) + b"\n", *others]
        (measured / "metrics.jsonl").write_bytes(b"".join(lines))
        right_or_refused(lambda: write_report([measured], tmp_path / "report.html"))


@in_its_place
@pytest.mark.parametrize("place", ["results.json", "results.latents", "results.latents/topk_k4"])
def test_something_else_where_an_evaluation_writes(place: str, what: str, run_dir: Path, cache) -> None:
    """It is refused before the work, or moved aside; nothing is written through a link."""
    replace_with(what, run_dir / place)
    outside = run_dir.parent / "outside"
    outside.mkdir()
    if what == "a link out" and place != "results.json":
        (run_dir / place).unlink()
        (run_dir / place).symlink_to(outside)
    done = right_or_refused(lambda: run([run_dir], cache, num_latents=0, show_progress=False))
    check_nothing_outside(run_dir / place)
    assert not list(outside.iterdir())
    if done is not None:
        assert what not in ("a FIFO", "a device")
        assert read_results(run_dir / "results.json") == done


@in_its_place
@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl"])
def test_something_else_in_place_of_what_a_report_reads(
    name: str, what: str, measured: Path, tmp_path: Path
) -> None:
    replace_with(what, measured / name)
    right_or_refused(lambda: write_report([measured], tmp_path / "report.html"))


@pytest.mark.parametrize("place", ["a\0b", "x" * 5000, "loop/sae", "/", "../" * 500])
def test_a_place_of_an_sae_that_cannot_be(place: str, measured: Path, tmp_path: Path) -> None:
    (measured / "loop").symlink_to("loop")
    values = json.loads((measured / "results.json").read_text())
    values["saes"][0]["sae_dir"] = place
    (measured / "results.json").write_text(json.dumps(values))
    assert right_or_refused(lambda: write_report([measured], tmp_path / "report.html")) is not None


def test_a_number_of_results_that_is_none(measured: Path) -> None:
    values = json.loads((measured / "results.json").read_text())
    values["saes"][0]["normalized"]["mse"] = "@"
    text = json.dumps(values).replace('"@"', "1e999")
    (measured / "results.json").write_text(text)
    with pytest.raises(UsageError, match=r"is damaged: .*; .*measure again"):
        read_results(measured / "results.json")


def change(path: Path, **values: Any) -> None:
    """Set values in all SAEs of a results file, each by its place with ``__`` for a step down."""
    results = json.loads(path.read_text())
    for sae in results["saes"]:
        for place, value in values.items():
            *steps, name = place.split("__")
            holder = sae
            for step in steps:
                holder = holder[step]
            holder[name] = value
    path.write_text(json.dumps(results))


def _add_decoder_shares(path: Path) -> None:
    """Let all SAEs have one hook, whose name stands in the title of a figure."""
    sae = json.loads(path.read_text())["saes"][0]
    hook = {name: sae[name] for name in ("hook", "d_model", "normalized", "raw")}
    hook |= {"mean_decoder_share": 1, "decoder_shares": {"edges": [0, 1], "counts": [1]}}
    change(path, hooks=[hook])


PROBING = {
    "data": "d", "classes": ["a"], "train_texts": 1, "test_texts": 1,
    "sparse": {"1": {"accuracy": 1e308, "by_class": []}}, "dense": {"accuracy": 1e308, "by_class": []},
    "model_sparse": {}, "model_dense": {"accuracy": 1, "by_class": []},
}  # fmt: skip
ABSORPTION = {"num_words": 1, "absorption_fraction": 0.1}


@pytest.mark.parametrize(
    "values",
    [
        {"density__rank": [10**400], "density__density": [0.5]},
        {"num_latents": 10**400},
        {"codes__l0": 1e308, "normalized__fvu": -1e308, "normalized__mse": 5e-324},
        {"codes__intervals": {"l0": [9.0, -9.0]}, "normalized__intervals": {"fvu": [5.0, 1.0]}},
        {"codes__intervals": {"l0": [-1e308, 1e308]}},
        {"density__log10_histogram": {"edges": [1e308, -1e308, 3], "counts": [1, 2**62]}},
        {"features_per_token": {"edges": [-1e308, 1e308], "counts": [1]}},
        {"features_per_token": {"edges": [0, 5e-324], "counts": [1]}},
        {"hook": "x" * 5000},
        {"hook": "resid_post.0$\\frac{$"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_numbers_and_names_that_cannot_be_drawn(values, measured: Path, tmp_path: Path) -> None:
    change(measured / "results.json", **values)
    _add_decoder_shares(measured / "results.json")
    right_or_refused(lambda: write_report([measured], tmp_path / "report.html"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("codes__l0", 1e308), ("codes__intervals", {"l0": [9.0, -1e308]}), ("hook", "$^{" * 2000)],
)
def test_files_of_figures_that_cannot_be_drawn(name: str, value: Any, measured: Path, tmp_path: Path) -> None:
    change(measured / "results.json", **{name: value})
    _add_decoder_shares(measured / "results.json")
    with warnings.catch_warnings(), suppress(UsageError):
        warnings.simplefilter("ignore")  # of matplotlib
        assert write_figures([measured], tmp_path / "figures")


def test_a_mean_that_is_infinite(measured: Path, tmp_path: Path) -> None:
    """One SAE among others, so that the figure is drawn."""
    change(measured / "results.json", probing=[PROBING], absorption=ABSORPTION)
    results = json.loads((measured / "results.json").read_text())
    results["saes"][0] |= {"probing": [PROBING, PROBING]}
    for sae in results["saes"][1:]:
        sae["probing"][0]["sparse"]["1"]["accuracy"] = 0.5
    (measured / "results.json").write_text(json.dumps(results))
    assert right_or_refused(lambda: write_report([measured], tmp_path / "report.html")) is not None


def test_saes_of_one_name(measured: Path) -> None:
    change(measured / "results.json", name="twice")
    with pytest.raises(UsageError, match=r"holds several SAEs called 'twice', .* measure again"):
        read_results(measured / "results.json")


@pytest.mark.parametrize("place", ["settings", "saes.0.codes.intervals", "saes.0.name"])
def test_messages_about_long_names_are_short(place: str, measured: Path) -> None:
    results = json.loads((measured / "results.json").read_text())
    holder: Any = results
    *steps, name = place.split(".")
    for step in steps:
        holder = holder[int(step) if step.isdigit() else step]
    holder[name] = "x" * 100_000 if name == "name" else {"y" * 100_000: {"z": "not a pair"}}
    (measured / "results.json").write_text(json.dumps(results))
    right_or_refused(lambda: read_results(measured / "results.json"))
    right_or_refused(lambda: read_fitted_zipf(f"{measured / 'results.json'}:none"))


def test_notes_about_long_names_are_short(measured: Path, cache, capsys) -> None:
    results = json.loads((measured / "results.json").read_text())
    results["saes"][0]["name"] = "x" * 100_000
    (measured / "results.json").write_text(json.dumps(results))
    run([measured], cache, num_latents=0, all_latents=False)
    assert "held all figures of xxx" in (said := capsys.readouterr().err) and len(said) < 10_000


@pytest.mark.parametrize("export_format", ["saelens", "dictionary_learning", "sparsify"])
def test_any_value_in_the_config_of_an_sae_to_export(
    export_format: str, run_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run_dir / "raw_k4" / "sae", tmp_path / "sae")
    content = (folder / "cfg.json").read_bytes()
    for seed in range(CASES):
        (folder / "cfg.json").write_bytes(damaged_json(content, seed))
        out = tmp_path / f"out {seed}"
        right_or_refused(partial(export_sae, folder, export_format, out))


def test_a_hook_of_a_long_number(run_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_dir / "raw_k4" / "sae", tmp_path / "sae")
    values = json.loads((folder / "cfg.json").read_text())
    values["hook"] = "resid_post." + "9" * 5000
    (folder / "cfg.json").write_text(json.dumps(values))
    out = right_or_refused(lambda: export_sae(folder, "dictionary_learning", tmp_path / "out"))
    assert out is not None
    assert json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]["layer"] is None
