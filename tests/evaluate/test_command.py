"""``saecache evaluate`` and ``saecache report`` as a user meets them; what train prints at its end."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from saecache.cli import app
from saecache.evaluate.results import read_results

from .conftest import HOOK


def saecache(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def evaluated(run_dir: Path, cache: object, *arguments: str | Path) -> dict:
    result = saecache("evaluate", run_dir, "--cache", cache.path, "--no-model", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads((run_dir / "results.json").read_text())["settings"]


def test_settings_from_a_recipe_a_file_and_flags(run_dir: Path, cache, tmp_path: Path) -> None:
    assert evaluated(run_dir, cache)["ce_tokens"] == 50_000
    quick = evaluated(run_dir, cache, "--config", "quick", "--set", "num_contexts=3", "--set", "max_rows=1k")
    assert (quick["ce_tokens"], quick["num_latents"]) == (5_000, 8)
    assert (quick["num_contexts"], quick["max_rows"]) == (3, 1000)
    (tmp_path / "mine.yaml").write_text("rows_per_block: 32\ndevice: auto\n")
    mine = evaluated(
        run_dir, cache, "--config", tmp_path / "mine.yaml", "--device", "cpu", "--ce-tokens", "7"
    )
    assert (mine["rows_per_block"], mine["device"], mine["ce_tokens"]) == (32, "cpu", 7)


def test_a_device_that_is_not_there(run_dir: Path, cache) -> None:
    result = saecache("evaluate", run_dir, "--cache", cache.path, "--no-model", "--device", "cuda:99")
    assert result.exit_code == 2
    assert "device='cuda:99' cannot be used here" in result.stderr


def test_the_place_of_the_results_is_looked_at_before_measuring(
    run_dir: Path, cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_args: object, **_options: object) -> None:
        raise AssertionError("nothing should be measured")

    monkeypatch.setattr("saecache.evaluate.runner.measure_sae", measure)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "results.json", run_dir):
        result = saecache("evaluate", run_dir, "--cache", cache.path, "--no-model", "--out", out)
        assert result.exit_code == 2, result.output
        assert "error: " in result.stderr


def test_files_where_folders_should_be(run_dir: Path, cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for arguments, message in (
        (["evaluate", tmp_path / "file", "--cache", cache.path], "no SAE in .*file: there is no such folder"),
        (["report", tmp_path / "no"], "no results at .*no/results.json: there is no such folder"),
        (["report", tmp_path / "file"], "no results at .*file/results.json: measure first"),
        (["synthetic", "--out", tmp_path / "file" / "x"], "cannot write .*x: .*file is a file, not a folder"),
    ):
        result = saecache(*arguments)
        assert result.exit_code == 2, result.output
        assert re.search(message, result.stderr), result.stderr


def test_a_model_that_is_not_there_says_how_to_go_without(run_dir: Path, cache) -> None:
    result = saecache("evaluate", run_dir, "--cache", cache.path)
    assert result.exit_code == 2
    assert "--no-model measures without CE and KL" in result.stderr
    result = saecache("evaluate", run_dir, "--cache", cache.path, "--no-model")
    assert result.exit_code == 0
    (warning,) = read_results(run_dir / "results.json").warnings
    assert warning.startswith(
        "Tokens are shown as numbers, because their tokenizer is not here: the model 'tiny'"
    )
    assert f"warning: {warning}" in result.stderr


def test_train_ends_with_a_table_and_the_next_command(cache, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"hook: {HOOK}\nnum_latents: 64\nbatch_rows: 128\nsteps: 3\ndevice: cpu\n"
        "log: {heldout_rows: 64, progress: false}\nvariants: [{kind: topk, k: [2, 4]}]\n"
    )
    out = tmp_path / "my run"
    result = saecache("train", tmp_path / "c.yaml", "--cache", cache.path, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["SAE", "folder", "steps", "loss"]
    assert [line.split()[0] for line in lines[2:4]] == ["topk_k2", "topk_k4"]
    assert str(out / "topk_k2" / "sae") in lines[2]
    assert lines[-1] == f"Next:  saecache evaluate '{out}' --cache {cache.path}"


def test_a_failure_of_all_variants_suggests_nothing(cache, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"hook: {HOOK}\nnum_latents: 64\nbatch_rows: 128\nsteps: 3\ndevice: cpu\nlog: {{progress: false}}\n"
        "optimizer: {learning_rate: 1.0e+37}\nvariants: [{kind: batch_topk, k: 2}]\n"
    )
    result = saecache("train", tmp_path / "c.yaml", "--cache", cache.path, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "1 of 1 variants failed: batch_topk_k2: " in result.stderr
    assert "Next" not in result.output


def test_flags_of_what_is_measured(run_dir: Path, cache) -> None:
    settings = evaluated(run_dir, cache, "--rule", "batch", "--set", "batch_rows=64")
    assert (settings["rule"], settings["batch_rows"], settings["other_cache"]) == ("batch", 64, False)
    assert evaluated(run_dir, cache, "--other-cache")["other_cache"] is True
    result = saecache("evaluate", run_dir, "--cache", cache.path, "--no-model", "--rule", "batches")
    assert result.exit_code == 2
    assert "expected 'threshold' or 'batch'" in result.stderr or "threshold, batch" in result.stderr
    result = saecache("evaluate", run_dir, "--cache", cache.path, "--no-model", "--probe", "a.jsonl")
    assert result.exit_code == 2
    assert "there is no file a.jsonl" in result.stderr


def test_the_table_shows_pairs_of_saes(run_dir: Path, cache) -> None:
    result = saecache("evaluate", run_dir, "--cache", cache.path, "--no-model")
    lines = result.stdout.splitlines()
    assert lines[0].split()[10:13] == ["dying", ">10", "%"]
    heads = next(i for i, line in enumerate(lines) if line.startswith("directions of"))
    assert lines[heads + 2].split()[:2] == ["batch_topk_k6", "topk_k4"]
