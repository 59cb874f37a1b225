"""The stress run sees what it is there to see: each judge is shown something wrong."""

from pathlib import Path

import pytest

from .clients import Client
from .outcomes import RECOVERED, RIGHT, WRONG, Outcomes, Row
from .page import PAGE, fill, results
from .world import complaint, difference

FILES = {"zarr.json": b"{}", "c/0": b"rows", "provenance/zarr.json": b"{}"}


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (FILES, ""),
        (FILES | {"provenance/zarr.json": b'{"date": 1}'}, ""),
        (FILES | {"c/0": b"rowz"}, "1 other bytes (c/0)"),
        (FILES | {".unfinished.json": b"{}"}, "1 left over (.unfinished.json)"),
        ({key: FILES[key] for key in ("zarr.json", "c/0")}, "1 missing (provenance/zarr.json)"),
        ({}, "3 missing (c/0, provenance/zarr.json, zarr.json)"),
    ],
)
def test_difference(got: dict[str, bytes], words: str) -> None:
    assert difference(got, FILES) == words


@pytest.mark.parametrize(
    ("status", "errors", "words"),
    [
        (0, "", ""),
        (1, "error: the store kept failing", ""),
        (1, "", "without a message"),
        (-11, "", "exit status -11"),
        (1, "error: x\nTraceback (most recent call last)\nKeyError: 1", "a stack trace: KeyError: 1"),
        (1, "error: team-secret-1f0c is wrong", "the secret key was printed"),
    ],
)
def test_complaint(tmp_path: Path, status: int, errors: str, words: str) -> None:
    (tmp_path / "log.err").write_text(errors)
    found = complaint(Client(["ls"], tmp_path / "log", status=status))
    assert words in found
    assert bool(words) == bool(found)


def test_what_is_wrong_is_counted_and_kept(tmp_path: Path) -> None:
    outcomes = Outcomes({"seed": 3})
    kills, faults = Row("kills", "push", "before request n"), Row("faults", "ls", "500")
    for store in ("seaweedfs", "moto"):
        outcomes.add(store, kills, RECOVERED)
    outcomes.add("moto", faults, RIGHT)
    outcomes.fail("moto", kills, "1 missing (zarr.json)", request=7)
    outcomes.write(tmp_path)
    table = (tmp_path / "stress.md").read_text()
    assert f"| | push | {RECOVERED} | {WRONG} |" in table
    assert "| before request n | 3 | 2 | 1 |" in table
    assert f"| | ls | {RIGHT} | {WRONG} |" in table
    assert "| 500 | 1 | 1 | 0 |" in table
    again = Outcomes.read(tmp_path / "stress.json")
    assert (again.counts, again.failures) == (outcomes.counts, outcomes.failures)
    assert '"request": 7' in table and '"request": 7' in (tmp_path / "stress.json").read_text()


def test_the_page_shows_the_runs_that_are_kept() -> None:
    """Run ``make stress-docs`` after a run was added."""
    assert PAGE.read_text("utf-8") == fill(PAGE.read_text("utf-8"))


def test_results_are_summed_by_store(tmp_path: Path) -> None:
    runs = []
    for day, wrong in ((2, False), (1, True)):
        facts = {"date": f"2026-11-0{day}", "command": "python -m tests.stress.run --seed 3", "minutes": 1.5}
        facts |= {"machine": "2 cores", "Python": "3.11"}
        runs.append(Outcomes({**facts, "finished": "yes" if wrong else "no", "commit": "abc"}))
        runs[-1].add("moto", Row("faults", "ls", "500"), RIGHT)
        if wrong:
            runs[-1].fail("moto", Row("faults", "ls", "500"), "hangs")
    text = results(runs)
    assert "### moto" in text and "SeaweedFS" not in text
    first, second = (line for line in text.splitlines() if "`--seed 3`" in line)
    assert first == "| 2026-11-01 | `--seed 3` | abc | 1.5 | 2 | 1 |"
    assert second == "| 2026-11-02 | `--seed 3`, stopped | abc | 1.5 | 1 | 0 |"
    assert "| 500 | 3 | 2 | 1 |" in text
