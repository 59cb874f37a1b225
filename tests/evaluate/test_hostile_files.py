"""Whatever results.json, metrics.jsonl or an SAE to export holds: a report, an export, or our message."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import export_sae, run, write_report
from saecache.evaluate.results import read_results

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
