"""push, pull, ls, info, verify and rm as they are typed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saecache.cli import app
from saecache.store import open_cache
from saecache.store.remote import open_remote_folder

from .server import READER_KEY, READER_SECRET, SECRET_KEY

Contents = Callable[[Path], dict[str, bytes]]
MAIN = "from saecache.cli import main; main()"


def run(*words: str | Path, status: int = 0) -> Any:
    """The result of ``saecache cache WORDS``, which ends with ``status``."""
    result = CliRunner().invoke(app, ["cache", *map(str, words)])
    assert result.exit_code == status, (result.stdout, result.stderr)
    assert SECRET_KEY not in result.stdout + result.stderr
    return result


def test_a_session(team: str, cache_path: Path, tmp_path: Path, contents: Contents) -> None:
    url, copy = f"{team}/name", tmp_path / "copy"
    fingerprint = open_cache(cache_path).fingerprint
    assert "would move" in run("push", cache_path, url, "--dry-run").stdout
    run("info", url, status=2)
    pushed = run("push", cache_path, url, "--concurrency", 3)
    assert "Next:  saecache cache info " + url in pushed.stdout
    assert "push: 100%" in pushed.stderr
    assert "nothing to do" in run("push", cache_path, url).stdout

    listed = run("ls", team).stdout.splitlines()
    assert len(listed) == 2
    assert listed[1].startswith("name ")
    assert fingerprint[:12] in listed[1]
    assert run("info", url).stdout == run("info", cache_path).stdout
    assert json.loads(run("info", url, "--json").stdout)["fingerprint"] == fingerprint
    assert "all as written" in run("verify", url).stdout
    assert json.loads(run("verify", url, "--quick", "--json").stdout)["ok"] is True

    assert "would move" in run("pull", url, copy, "--dry-run").stdout
    assert not copy.exists()
    pulled = run("pull", url, copy, "--max-bandwidth", 50)
    assert f"saecache train topk --cache {copy}" in pulled.stdout
    assert contents(copy) == contents(cache_path)
    assert [row["state"] for row in json.loads(run("ls", tmp_path, "--json").stdout)] == ["complete"]

    assert "pass --yes" in run("rm", url, status=2).stderr
    assert "would remove" in run("rm", url, "--dry-run").stdout
    removed = json.loads(run("rm", url, "--yes", "--json").stdout)
    assert (removed["url"], removed["state"]) == (url, "complete")
    assert "no caches" in run("ls", team).stderr
    assert not list(open_remote_folder(url).objects())


@pytest.mark.parametrize("command", ["push", "pull"])
def test_json_is_all_there_is_on_stdout(team: str, cache_path: Path, tmp_path: Path, command: str) -> None:
    url = f"{team}/name"
    places = {"push": (cache_path, url), "pull": (url, tmp_path / "copy")}
    if command == "pull":
        run("push", *places["push"])
    for words, moved in (["--dry-run"], True), ([], True), ([], False):
        told = json.loads(run(command, *places[command], "--json", *words).stdout)
        assert told["url"] == url
        assert (told["moved_bytes"] > 0) is moved
        assert told["dry_run"] is bool(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["push", "s3://team/x", "somewhere"], "push takes a folder and then a URL"),
        (["push", "cache", "team/x"], "A folder has a URL, too: file:///"),
        (["ls", "file://team/x"], f"a whole path: {Path('team/x').absolute().as_uri()}"),
        (["pull", "somewhere", "s3://team/x"], "pull takes a URL and then a folder"),
        (["rm", "somewhere"], "remove the folder somewhere with your own tools"),
        (["info", "s3://team/nothing-here"], "there is nothing there"),
        (["ls", "no/such/folder"], "there is no folder no/such/folder: give a folder of caches"),
        (["ls", "s3://no-such-bucket"], "there is no such bucket"),
        (["ls", "s3://key:hunter2@bucket"], "come from the environment"),
        (["pull", "https://example.com/x", "dir"], "set AWS_ENDPOINT_URL"),
        (["verify", "somewhere", "--quick"], "for caches in object storage"),
        (["push", "somewhere", "s3://team/x"], "no cache at somewhere"),
    ],
)
def test_mistakes(team: str, words: list[str], told: str) -> None:
    result = run(*words, status=2)
    assert told in result.stderr
    assert "hunter2" not in result.stderr


def test_rights_that_are_missing(team: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert "not allowed (403 AccessDenied)" in run("push", cache_path, f"{team}/x", status=2).stderr
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
    assert "credentials were not accepted" in run("ls", team, status=2).stderr


def accept_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted(team: str, cache_path: Path, contents: Contents, tmp_path: Path) -> None:
    """Ctrl-C in the middle: said, and the same command continues."""
    run("push", cache_path, f"{team}/c")
    words = ["cache", "pull", f"{team}/c", str(tmp_path / "copy")]
    command = [sys.executable, "-c", MAIN, *words, "--max-bandwidth", "0.02"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, env=dict(os.environ), preexec_fn=accept_interrupts
    ) as process:
        assert process.stderr
        while not list((tmp_path / "copy").rglob("c/0")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().decode()
    assert process.returncode == 130
    assert "the same command continues" in told
    assert "Traceback" not in told
    run("pull", f"{team}/c", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(cache_path)
