"""The command line as a user meets it: exit statuses, messages without stack traces, JSON on stdout."""

import ast
import errno
import io
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import saecache as saecache_package
from saecache.cli import app, cache_app
from saecache.commands.border import RESUMES, add_command, message_of
from saecache.commands.escaping import EscapingStream
from saecache.commands.printing import RECIPE_BATCH_ROWS, print_json, shell_line, suggest_hook, train_words
from saecache.common.errors import CorruptCacheError, SaecacheError, UsageError
from saecache.common.progress import progress_bar
from saecache.configs import load_config
from saecache.train import TrainConfig

COMMANDS = [
    *([str(command.name)] for command in app.registered_commands),
    *(["cache", str(command.name)] for command in cache_app.registered_commands),
]


def saecache(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from saecache.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def told(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a failed command; a stack trace is never one."""
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stderr.startswith(("error: ", "Usage: ")), result.stderr
    return result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
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


def test_a_recipe_of_another_command(tmp_path: Path) -> None:
    result = saecache("harvest", "topk", "--out", tmp_path / "c")
    assert "'topk' is a recipe for train, not for harvest" in told(result)


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


def test_version_and_the_short_help() -> None:
    version = saecache("--version")
    assert (version.returncode, version.stdout) == (0, f"saecache {saecache_package.__version__}\n")
    for command in ([], ["train"], ["cache"], ["cache", "push"]):
        assert saecache(*command, "-h").stdout == saecache(*command, "--help").stdout != ""


MODULES_AFTERWARDS = """
import sys
from saecache.cli import main
try: main()
finally: print(*[name for name in ("torch", "numpy", "numba", "transformers") if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "tpok"],
        ["train", "topk", "--set", "sede=1"],
        ["train", "twice.yaml"],
        ["train", "torn.yaml"],
        ["train", "latin.yaml"],
        ["evaluate", "run", "--set", "ce_token=5"],
        ["evaluate", "run", "--config", "defualt"],
    ],
    ids=" ".join,
)
def test_a_typo_is_found_before_anything_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("steps: 3\nseed: 1\nsteps: 4\n")
    (tmp_path / "torn.yaml").write_text("steps: [3\n")
    (tmp_path / "latin.yaml").write_bytes("name: Käse\n".encode("latin-1"))
    command = [sys.executable, "-c", MODULES_AFTERWARDS, *arguments, "--cache", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2
    told(result)
    assert result.stdout.split() == []


def test_places_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "config.yaml").mkdir()
    cases = [
        (["report", tmp_path, "--out", tmp_path / "file" / "report.html"], "file is a file, not a folder"),
        (["report", tmp_path, "--out", tmp_path], "is a folder, and a file is to be written"),
        (["train", tmp_path / "config.yaml", "--cache", "x"], "a folder, not a file"),
    ]
    for arguments, message in cases:
        result = saecache(*arguments)
        assert result.returncode == 2
        assert message in told(result)


def test_errors_of_the_system_and_of_libraries_are_messages() -> None:
    import yaml
    from pydantic import TypeAdapter, ValidationError
    from safetensors import SafetensorError
    from tokenizers import Tokenizer

    def error_of(call: Callable[[], object]) -> BaseException:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever the library raises
            return error
        raise AssertionError("it should fail")

    assert message_of(PermissionError(13, "Permission denied", "/x/y")) == "/x/y: Permission denied"
    assert message_of(UsageError("no file a\x1b[2J\x07\n  of é")) == "no file a\\x1b[2J\\x07\n  of é"
    assert message_of(OSError("the disk is gone")) == "the disk is gone"
    full = message_of(OSError(errno.ENOSPC, "No space left on device"))
    assert full == "the disk is full (No space left on device): make room, then run the same command again"
    assert message_of(SafetensorError("header too large")) == "safetensors: header too large"
    assert "YAML: " in str(message_of(error_of(lambda: yaml.safe_load("a: [1"))))
    assert "SAECACHE_DEBUG=1 shows where" in str(message_of(error_of(lambda: Tokenizer.from_str("{"))))
    invalid = error_of(lambda: TypeAdapter(int).validate_python("x"))
    assert isinstance(invalid, ValidationError) and "the settings: " in str(message_of(invalid))
    assert "UTF-8" in str(message_of(error_of(lambda: b"\xff".decode())))
    assert "out of memory" in str(message_of(MemoryError()))
    for bug in (KeyError("k"), AssertionError(), TypeError("t"), ZeroDivisionError()):
        assert message_of(bug) is None, "a bug keeps its stack trace"


FAILING = """
import sys, typer
from saecache.commands.border import add_command, note_interrupts
from saecache.common.errors import CorruptCacheError, SaecacheError, UsageError
from saecache.common.progress import progress_bar
app = typer.Typer()
@app.callback()
def nothing(): pass
def fail():
    {body}
add_command(app, "fail", fail)
note_interrupts()
sys.argv = ["saecache", "fail"]
app()
"""


def failing(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FAILING.format(body=body)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("kind", [SaecacheError, UsageError, CorruptCacheError])
def test_a_message_of_any_length_is_shortened(kind: type[SaecacheError]) -> None:
    error = kind("begins " + "\x01" * 1_000_000 + " ends")
    for told in (str(error), str(message_of(error)), str(UsageError(f"b: {error}"))):
        assert len(told) < 10_000
        assert "begins" in told and " characters were cut here " in told and told.endswith(" ends")
    assert len(str(message_of(OSError("\x01" * 1_000_000)))) < 10_000
    assert str(kind("x" * 9000)) == "x" * 9000


CONTROLS = "a\x1b]0;owned\x07b\x9b2J\u202ec\ud800"
ESCAPED = r"a\x1b]0;owned\x07b\x9b2J\u202ec\ud800"


@pytest.mark.parametrize("how", ["echo", "echo to stderr", "print", "log", "bar"])
def test_a_command_prints_nothing_that_controls_the_terminal(how: str) -> None:
    def command() -> None:
        match how:
            case "echo":
                typer.echo(f"{CONTROLS}\té\nx\rnext")
            case "echo to stderr":
                typer.echo(CONTROLS, err=True)
            case "print":
                print("warning:", CONTROLS, file=sys.stderr)
            case "log":
                logging.getLogger("saecache").warning("a checkpoint is not used (%s)", CONTROLS)
            case _:
                with progress_bar(CONTROLS, "row", 2) as bar, progress_bar("inner", "row", 2) as inner:
                    bar.update(2)
                    inner.update(2)

    group = typer.Typer()
    add_command(group, "x", command)
    with logging_as_in_a_process():
        result = CliRunner().invoke(group, [])
    assert result.exit_code == 0, result.exception
    printed = result.stdout + result.stderr
    assert ESCAPED in printed
    assert not set(printed.replace("\x1b[A", "")) & set("\x1b\x07\x9b\u202e\ud800")
    if how == "echo":
        assert result.stdout == f"{ESCAPED}\té\nx\\rnext\n"
    if how == "bar":
        assert "\r" in printed and "\n\r" in printed and "\x1b[A" in printed and "100%" in printed


@contextmanager
def logging_as_in_a_process() -> Iterator[None]:
    """Without the handlers of pytest, so that the last resort writes to stderr."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


def test_json_of_a_command_stays_json() -> None:
    group, document = typer.Typer(), {"name": f"{CONTROLS}é\n", "n": [1, 2]}
    add_command(group, "x", lambda: print_json(document))
    assert json.loads(CliRunner().invoke(group, []).stdout) == document


def test_a_terminal_without_unicode_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = EscapingStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert stream.write("é\x1b\n") == 3
    assert raw.getvalue() == rb"\xe9\x1b" + b"\n"


def test_stack_traces_on_demand() -> None:
    quiet = failing("raise UsageError('no')")
    assert (quiet.returncode, quiet.stderr) == (2, "error: no\n")
    assert "Traceback" in failing("raise UsageError('no')", SAECACHE_DEBUG="1").stderr
    assert "Traceback" in failing("raise KeyError('a bug')").stderr


@pytest.mark.parametrize(
    "body",
    [
        "import signal; signal.raise_signal(signal.SIGINT)",
        "import signal; signal.raise_signal(signal.SIGTERM)",  # from Slurm, while a command still loads
        # A library that is interrupted while it is imported, and makes another error of it.
        "import signal\n    try: signal.raise_signal(signal.SIGINT)\n    except BaseException: pass\n"
        "    raise ImportError('numpy is half imported')",
    ],
)
def test_a_signal_is_a_message_even_within_an_import(body: str) -> None:
    result = failing(body)
    assert result.returncode == 130
    assert result.stderr == "interrupted; nothing was saved: the same command starts again\n"


def test_only_commands_that_resume_say_that_they_do() -> None:
    named = {info.name: info.callback for group in (app, cache_app) for info in group.registered_commands}
    saying = {name for name, callback in named.items() if callback.interrupted == RESUMES}
    stages = {"harvest", "train", "interpret", "publish", "demo"}
    assert saying == stages | {"slice", "merge", "convert", "push", "pull", "rm"}


def test_next_commands_survive_a_shell() -> None:
    words = ["saecache", "train", "topk", "--cache", "my cache/it's $HOME", "plain"]
    assert shlex.split(shell_line(words)) == words
    python = ["python", "-c", "load('a b')"]
    assert shell_line(python) == "python -c \"load('a b')\""
    assert shlex.split(shell_line(python)) == python


@pytest.mark.parametrize(
    ("hooks", "chosen"),
    [
        (["attn_out.0", "mlp_out.3", "resid_post.10", "resid_post.2", "resid_post.9"], "resid_post.9"),
        (["attn_out.1", "mlp_out.1"], "mlp_out.1"),
        (["model.layers.1", "model.layers.0"], "model.layers.1"),
    ],
)
def test_next_trains_on_the_residual_stream_in_the_middle(hooks: list[str], chosen: str) -> None:
    assert suggest_hook(hooks) == chosen
    assert train_words("c", hooks, 10_000)[-2:] == ["--set", f"hook={chosen}"]
    assert "--set" not in train_words("c", hooks[:1], RECIPE_BATCH_ROWS)
    assert load_config(TrainConfig, "topk", kinds=("train",)).batch_rows == RECIPE_BATCH_ROWS
    assert train_words("c", hooks[:1], 509)[-2:] == ["--set", "batch_rows=31"]
