"""``saecache export`` as a user meets it."""

import json
from pathlib import Path

from typer.testing import CliRunner

from saecache.cli import app
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
    assert "on 512 random rows" in result.stdout and "--cache may tell" in result.stdout


def test_bad_usage(trained: Trained, tmp_path: Path) -> None:
    folder, out = str(trained("relu", "scale")), str(tmp_path / "out")
    for arguments, told in (
        ([folder, "--format", "sparsify", "--out", out], "use --format saelens or dictionary_learning"),
        ([str(tmp_path), "--format", "saelens", "--out", out], "no SAE in"),
        ([folder, "--out", out], "Missing option '--format'"),
    ):
        result = CliRunner().invoke(app, ["export", *arguments])
        assert result.exit_code == 2
        assert told in result.stderr
