"""The command line as a user meets it: exit statuses, messages without stack traces, JSON on stdout."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    *("harvest", "train", "evaluate", "report", "export", "recipes", "demo"),
    *(
        f"cache {name}"
        for name in ("info", "verify", "ls", "push", "pull", "rm", "slice", "merge", "convert")
    ),
]


def saecache(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from saecache.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def told(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a failed command; a stack trace is never one."""
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stderr.startswith(("error: ", "Usage: ")), result.stderr
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str) -> None:
    result = saecache(*command.split(), "--help")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) >= 5


@pytest.mark.parametrize("module", ["saecache", "saecache.cli"])
def test_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "recipes"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "pythia-160m-pile" in result.stdout


def test_help_loads_nothing_heavy() -> None:
    """Everything that takes long to import waits for the command that needs it."""
    code = (
        "import sys; sys.argv = ['saecache', '--help']\nfrom saecache.cli import main\n"
        "try: main()\nfinally: print({name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(result.stderr))
    packages = {name for name in loaded - sys.stdlib_module_names if not name.startswith("_")}
    light = {"saecache", "typer", "shellingham", "annotated_doc", "click", "typing_extensions"}
    assert {"saecache", "typer"} <= packages <= light


def test_no_command_shows_the_help_and_fails() -> None:
    assert saecache().returncode == 2


def test_unknown_command_and_option_are_usage_errors() -> None:
    assert saecache("harvset").returncode == 2
    assert saecache("recipes", "--jsno").returncode == 2


def test_recipes_as_text_and_json() -> None:
    text = saecache("recipes")
    assert text.returncode == 0
    assert "demo" in text.stdout
    listed = json.loads(saecache("recipes", "--json").stdout)
    assert {"harvest", "train"} <= {entry["kind"] for entry in listed}
    assert all(entry["summary"] for entry in listed)


def test_recipe_is_printed_as_yaml() -> None:
    result = saecache("recipes", "harvest/demo")
    assert result.returncode == 0
    assert "builtin:demo" in result.stdout


def test_ambiguous_recipe_asks_which() -> None:
    result = saecache("recipes", "demo")
    assert result.returncode == 2
    assert "harvest/demo" in told(result)


def test_unknown_recipe_suggests(tmp_path: Path) -> None:
    result = saecache("harvest", "dmeo", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'demo'" in told(result)
    assert not any(tmp_path.iterdir())


def test_unknown_key_suggests_and_leaves_nothing(tmp_path: Path) -> None:
    result = saecache("harvest", "demo", "--set", "sede=1", "--out", tmp_path / "cache")
    assert result.returncode == 2
    assert "did you mean 'seed'" in told(result)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["cache", "info"], ["cache", "verify"]])
def test_no_such_cache(command: list[str], tmp_path: Path) -> None:
    result = saecache(*command, tmp_path / "nowhere")
    assert result.returncode in (1, 2)
    assert "nowhere" in told(result)


def test_train_without_a_cache_is_told(tmp_path: Path) -> None:
    result = saecache("train", "topk", "--cache", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert result.returncode in (1, 2)
    assert "nowhere" in told(result)
    assert not (tmp_path / "run").exists()
