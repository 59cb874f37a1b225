"""The first block of docs/sharing.md as a newcomer types it, on a real server and with a small harvest."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saecache.cli import app

from .test_docs import ROOT, commands

SMALL = {
    "harvest": ["--set", "num_tokens=6_000", "--set", "batch_size=8", "--set", "hooks=resid_post.3"],
    "train": ["--set", "batch_rows=512", "--set", "epochs=1", "--set", "expansion_factor=2"],
    "evaluate": ["--no-model"],
}


@pytest.fixture
def typed(team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Types a command of the page; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))

    def typed(words: list[str], *more: str, status: int = 0) -> str:
        words = [word.replace("s3://team/caches", team).replace("pythia-160m-pile", "demo") for word in words]
        result = CliRunner().invoke(app, [*words, *SMALL.get(words[0], []), *more])
        assert result.exit_code == status, result.output + str(result.exception)
        return result.stdout

    return typed


def test_one_person_harvests_everybody_trains(
    typed: Any,
    team: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harvest, listing, train, evaluate = commands(ROOT / "docs" / "sharing.md")[:4]
    url = f"{team}/pythia-160m"
    assert f"--cache {url}" in typed(harvest), "the next command is told"
    (cache,) = json.loads(typed(listing, "--json"))
    assert (cache["url"], cache["state"]) == (url, "complete")
    assert f"--cache {url}" in typed(train)
    results = json.loads(typed(evaluate, "--json"))
    assert results["cache"]["path"] == url
    assert len(results["saes"]) == 1
    monkeypatch.setenv("SAECACHE_TEAM", team)
    told = json.loads(typed(["harvest", "demo", "--out", "caches/again"], "--json"))
    assert (told["cache"], told["reused"]) == (url, True)
    assert not Path("caches/again").exists()
