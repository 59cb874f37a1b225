"""``saecache export`` as a user meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saecache.cli import app
from saecache.evaluate.export.metadata import find_provenance
from saecache.store.reading.reader import ActivationCache

from ...test_cli import saecache
from .conftest import Trained


def test_json_and_the_report_beside_the_files(
    trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    folder, out = trained("batch_topk", "unit"), tmp_path / "out"
    result = saecache("export", folder, "--format", "saelens", "--out", out, "--cache", cache.path, "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed.pop("path") == str(out)
    assert "SAE.load_from_disk" in printed.pop("loading")
    text = (out / "saecache-export.json").read_text("utf-8")
    report = json.loads(text)
    assert report.pop("cfg") == json.loads((folder / "cfg.json").read_text("utf-8"))
    assert report.pop("provenance")["dataset"] == "toy/text"
    assert report == printed
    assert str(tmp_path) not in text and str(cache.path) not in text
    assert [c["rows"] for c in printed["comparisons"]] == ["random", "heldout"]
    assert sorted(path.name for path in out.iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
        "saecache-export.json",
    ]


def test_text_says_where_it_is_and_how_to_load_it(trained: Trained, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ["export", str(trained("topk", "scale")), "--format", "sparsify", "--out", out]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"SparseCoder.load_from_disk({out!r})" in result.stdout
    assert "on 512 random rows" in result.stdout and "the cache may say it: give --cache" in result.stdout
    assert """Next:  python -c "from sparsify import SparseCoder; sae = SparseCoder""" in result.stdout


def test_with_the_cache_it_does_not_ask_for_the_cache(
    trained: Trained, cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "saecache.evaluate.export.runner.find_provenance", lambda sae, cache: find_provenance(sae, None)
    )
    folder, out = str(trained("topk", "scale")), str(tmp_path / "out")
    arguments = ["export", folder, "--format", "sparsify", "--out", out, "--cache", str(cache.path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "--cache" not in result.stdout
    assert "neither the SAE nor the cache says it" in result.stdout


def test_bad_usage(trained: Trained, tmp_path: Path) -> None:
    folder, out = str(trained("relu", "scale")), str(tmp_path / "out")
    for arguments, told in (
        ([folder, "--format", "sparsify", "--out", out], "use --format dictionary_learning or saelens"),
        ([str(tmp_path), "--format", "saelens", "--out", out], "no SAE in"),
        ([folder, "--out", out], "Missing option '--format'"),
    ):
        result = CliRunner().invoke(app, ["export", *arguments])
        assert result.exit_code == 2
        assert told in result.stderr
