"""What a run shows: lines without a terminal, a bar on one; and where it resumed."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saecache.cli import app
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig, run
from saecache.train.runs import display
from saecache.train.runs.display import Display

FIGURES = [
    {"loss": 0.5, "fvu": 0.25, "l0": 16.0, "dead": 3},
    {"loss": 0.4, "fvu": 0.2, "l0": 32.0, "dead": 0},
]
SHOWN = {"log": {"every_steps": 2, "progress": True}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_at_the_first_step_every_so_often_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 100_000, 4))
    monkeypatch.setattr(display, "monotonic", lambda: next(seconds))
    asked = []
    shown = Display(tmp_path, 20, 0, 1000, hidden=False)
    with shown.shown():
        for step in range(20):
            shown.advance(lambda step=step: asked.append(step) or FIGURES)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/20  loss 0.5/0.4  fvu 0.25/0.2  l0 16/32  dead 3/0"
    assert lines[-1].startswith("step 20/20  ") and "rows/s  ETA 0:00:00  loss 0.5/0.4" in lines[-1]
    assert 3 < len(lines) < 15
    assert len(asked) == len(lines), "figures are asked for only when they are shown"


def test_a_bar_on_a_terminal_shows_the_loss_from_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    asked = []
    shown = Display(tmp_path, 50, 0, 1000, hidden=False)
    with shown.shown():
        shown.advance(lambda: asked.append(1) or FIGURES)
        assert "loss 0.5/0.4  fvu 0.25/0.2  l0 16/32  dead 3/0" in terminal.getvalue()
        shown.advance(lambda: asked.append(2) or FIGURES)
        shown.advance(lambda: asked.append(3) or FIGURES, logged=True)
    assert "3/50" in terminal.getvalue()
    assert asked == [1, 3]


def test_more_variants_than_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Display(tmp_path, 2, 0, 1, hidden=False).advance(lambda: FIGURES * 4)
    assert capsys.readouterr().err.endswith("dead 3/0/3/0/3  (and 3 more variants)\n")


def test_a_run_without_a_terminal_and_its_resumption(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config({"kind": "topk", "k": 4}, {"kind": "topk", "k": 8}, **SHOWN)
    asked = iter([False, False, False, False, True])
    with monkeypatch.context() as patched:
        patched.setattr("saecache.train.runs.runner.stop_on_signals", lambda: _Stop(asked))
        with pytest.raises(KeyboardInterrupt):
            run(config, cache, tmp_path / "run")
    first = capsys.readouterr().err.splitlines()
    assert first[0].startswith("step 1/8  loss ") and first[0].count("/") == 5
    result = run(config, cache, tmp_path / "run")
    again = capsys.readouterr().err.splitlines()
    assert again[0] == f"{tmp_path / 'run'}: resuming from the checkpoint after step 5 of 8"
    assert again[1].startswith("step 6/8  loss ")
    assert again[-1].startswith("step 8/8  ")
    assert {name: line["step"] for name, line in result.last_lines.items()} == {"topk_k4": 8, "topk_k8": 8}
    assert f"fvu {result.last_lines['topk_k4']['fvu']:.3g}/" in again[-1]


def test_a_run_that_diverged_says_so(cache: ActivationCache, tmp_path: Path) -> None:
    settings = ("batch_rows=64", "num_latents=64", "steps=30", "variants.0.k=4", "log.progress=false")
    words = [word for setting in settings for word in ("--set", setting)]
    command = ["train", "topk", "--cache", str(cache.path), *words]
    shown = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "good")])
    assert shown.exit_code == 0, shown.output
    assert "above 1" not in shown.stderr
    rate = ["--set", "optimizer.learning_rate=100", "--set", "optimizer.clip_norm=null"]
    shown = CliRunner().invoke(app, [*command, *rate, "--out", str(tmp_path / "bad")])
    assert shown.exit_code == 0, shown.output
    assert "FVU of topk_k4 is above 1, worse than the mean row: train longer, or lower" in shown.stderr


def test_hidden_is_silent(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(make_config({"kind": "topk", "k": 4}), cache, tmp_path / "run")
    assert "step" not in capsys.readouterr().err


class _Stop:
    """Asks to stop at a given step, as a signal would."""

    def __init__(self, answers) -> None:
        self.answers = answers

    def __enter__(self):
        return lambda: next(self.answers)

    def __exit__(self, *_):
        return None
