"""``saecache doctor`` as a user meets it: a process, its exit status, its files, and no secrets in any."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saecache.cli import app
from saecache.doctor import read_report

from .conftest import SECTIONS, small_settings

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIASECRET0001",
    "AWS_SECRET_ACCESS_KEY": "secret-0002",
    "AWS_SESSION_TOKEN": "secret-0003",
    "AWS_ENDPOINT_URL": "https://user:secret-0004@storage.example",
    "GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "secret-0005"}',
    "AZURE_STORAGE_ACCOUNT_KEY": "secret-0006",
    "HF_TOKEN": "hf_secret-0007",
    "SAECACHE_TEAM": "https://user:secret-0008@team.example",
}
START = "from saecache.cli import main; main()"


INTERRUPTED = (
    """
import os
from saecache.doctor import examination

def compare_until_told(*arguments, **settings):
    os.kill(os.getpid(), {number})
    raise AssertionError("the signal ends this section")

examination.compare_with_cpu = compare_until_told
"""
    + START
)  # the third section that takes long


def start(*words: str | Path, cwd: Path, code: str = START, **environment: str) -> "subprocess.Popen[str]":
    home = cwd / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = secret-0009\n")
    kept = {name: value for name, value in os.environ.items() if name != "SAECACHE_BACKEND"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "doctor", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env={**kept, "HOME": str(home), **environment},
    )  # fmt: skip


def test_a_quick_examination_passes_and_shows_no_secrets(tmp_path: Path) -> None:
    files = ["--json", "out/doctor.json", "--markdown", "out/doctor.md"]
    process = start("--quick", *small_settings(), *files, cwd=tmp_path, **SECRETS)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr + stdout
    report = read_report(tmp_path / "out" / "doctor.json")
    assert [section.name for section in report.sections] == list(SECTIONS)
    statuses = {section.name: section.status for section in report.sections}
    left_out = {name for name, status in statuses.items() if status != "done"}
    assert left_out <= {"kernels", "kernel_times", "moves"}
    measured = {section.name for section in report.sections if section.figures}
    assert {"storage", "steps", "writer", "feed", "harvest"} <= measured
    assert (tmp_path / "out" / "doctor.md").read_text("utf-8") == stdout.removesuffix("\n")
    assert "operations" in stderr, "progress is shown"

    found = {f.name: f.value for section in report.sections for f in section.findings}
    assert found["credentials for S3"] == "AWS_ACCESS_KEY_ID, ~/.aws/credentials"
    assert found["credentials for Hugging Face"] == "HF_TOKEN"
    assert found["team"] == "1 locations in SAECACHE_TEAM"
    written = stdout + stderr + (tmp_path / "out" / "doctor.json").read_text("utf-8")
    for secret in ("secret-0", "AKIA", "storage.example", "team.example"):
        assert secret not in written
    assert str(tmp_path) not in (tmp_path / "out" / "doctor.json").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"], "temporary files are removed"


def test_a_backend_that_computes_wrongly_makes_the_status_1(
    broken_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = dict.fromkeys(("training", "steps", "writer", "feed", "harvest", "peers"), 1e-9)
    words = ["doctor", "--quick", *small_settings(**nothing), "--json", "doctor.json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    report = read_report(Path("doctor.json"))
    assert report.backend == broken_backend
    failed = {check.name.split(": ")[-1] for section in report.sections for check in section.failed_checks}
    batch = {f"largest_of_batch{how}" for how in ("", " with the last guess", " with a guess too high")}
    decoding = {"decode", "decode with a bias", "add_decoded in two calls has the bits of decode"}
    assert failed == {*decoding, "adam_step", "adam_step, rows of norm 1", *batch}
    assert "checks FAILED" in result.stdout
    assert "ArithmeticError: this kernel fails" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_what_was_done_and_removes_temporary_files(
    number: signal.Signals, tmp_path: Path
) -> None:
    code = INTERRUPTED.format(number=int(number))
    process = start("--quick", *small_settings(), "--json", "doctor.json", cwd=tmp_path, code=code)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "the report has what was done" in stderr
    report = read_report(tmp_path / "doctor.json")
    assert report.interrupted
    assert "interrupted" in stdout
    statuses = [section.status for section in report.sections]
    assert statuses.count("stopped") == 1
    assert statuses[3] == "done"
    assert report.sections[3].checks
    assert set(statuses[6:]) == {"skipped"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doctor.json", "home"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda:9"], "device='cuda:9' cannot be used here"),
        (["--set", "limit_second=3"], "did you mean 'limit_seconds'"),
        (["--set", "cpu.rows=0"], "cpu.rows: must be greater than 0"),
        (["--json", "there/is/a/file"], "a file, not a folder"),
        (["--set", "folder=there"], "is a file"),
    ],
)
def test_bad_usage_is_told_before_anything_is_measured(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("")
    result = CliRunner().invoke(app, ["doctor", "--quick", *words])
    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_recipes_fit_their_promise() -> None:
    """A minute and eight minutes, with some seconds for imports and for the last item to end."""
    from saecache.configs import load_config
    from saecache.doctor import DoctorConfig

    for name, most in (("quick", 60), ("default", 450)):
        config = load_config(DoctorConfig, name, kinds=("doctor",))
        assert config.limit_seconds <= most
        assert max(config.seconds.model_dump().values()) < config.limit_seconds


def test_an_unknown_backend_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAECACHE_BACKEND", "abacus")
    result = CliRunner().invoke(app, ["doctor", "--quick"])
    assert result.exit_code == 2
    assert "there is no backend 'abacus'" in result.stderr
    assert list(tmp_path.iterdir()) == []
