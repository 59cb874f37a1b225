"""What the benchmark scripts share: turns, summaries, and the JSON files that the page is made from."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import saecache

ROOT = Path(saecache.__file__).parent
SHARED = ROOT / "benchmarks" / "shared"
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("measuring", SHARED / "measuring.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "measuring", module)
    spec.loader.exec_module(module)
    return module


def test_ways_take_turns_and_warm_up_does_not_count(measuring: ModuleType) -> None:
    calls: list[str] = []

    def way(name: str) -> int:
        calls.append(name)
        return len(calls)

    ways = {"a": lambda: way("a"), "b": lambda: way("b")}
    found = measuring.take_turns(ways, 2, warm_up=1, after_round=lambda: calls.append("end"))
    assert calls == ["a", "b", "end"] * 3
    assert found == {"a": [4, 7], "b": [5, 8]}


def test_ratios_are_taken_within_a_round(measuring: ModuleType) -> None:
    """A machine that is three times as slow in one round changes no ratio."""
    assert measuring.ratios([2.0, 6.0], [1.0, 3.0]) == [2.0, 2.0]
    with pytest.raises(ValueError, match="shorter"):
        measuring.ratios([2.0, 6.0], [1.0])


@pytest.mark.parametrize(
    ("values", "decimals", "text"),
    [
        ([1.0, 2.5, 1.5], 2, "1.50 (1 to 2.50)"),
        ([0.31963], 5, "0.31963"),
        ([0.0123], 2, "0.012"),
        ([1234.5, 99.95, 10_000.2], 2, "1,234 (100.0 to 10,000)"),
    ],
)
def test_figures_are_medians_with_a_range(
    measuring: ModuleType, values: list[float], decimals: int, text: str
) -> None:
    assert measuring.format_summary(measuring.Summary.of(values), decimals) == text


def test_a_report_is_one_json_file_without_places_of_the_machine(
    measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["step.py", "--results", str(tmp_path), "--peer-python", "/home/me/bin/python", "--label", "dead"]
    monkeypatch.setattr(sys, "argv", words)
    options = measuring.parser("about")
    options.add_argument("--peer-python")
    report = measuring.Report("step", options.parse_args(), "F = 8")
    report.add("ours / theirs", [1.0, 3.0, 2.0], group="ratio")
    path = report.save()
    assert path == tmp_path / "step-dead.json"
    text = path.read_text("utf-8")
    assert "/home" not in text
    assert str(tmp_path) not in text
    run = json.loads(text)
    assert run["command"].startswith("python benchmarks/step.py --results PATH --peer-python PATH")
    (figure,) = run["figures"]
    assert (figure["median"], figure["low"], figure["high"], figure["rounds"]) == (2, 1, 3, 3)
    assert {"processor", "cores", "torch"} <= run["machine"].keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_uses_what_they_share(script: Path) -> None:
    source = script.read_text("utf-8")
    assert "from shared.measuring import" in source
    assert f'"{script.stem}",' in source, "the report is named for the script"
    for repeated in ("perf_counter", "statistics.median", "ArgumentParser("):
        assert repeated not in source, repeated
