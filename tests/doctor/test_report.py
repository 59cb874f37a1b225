"""The JSON document: its fields, its version, and what makes it a failure."""

import json
from pathlib import Path
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.doctor.markdown import render
from saecache.doctor.report import Check, Figure, Finding, LeftOut, Report, Section, read_report


def report(*sections: Section, **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "saecache": "0.2.0", "date": "2026-11-28", "command": "saecache doctor", "device": "a CPU",
        "backend": "compiled", "load": 0.5, "seconds": 3.0, "interrupted": False, "settings": {"rows": "8"},
    }  # fmt: skip
    return Report(**(fields | changes), sections=sections)


def section(**changes: Any) -> Section:
    fields: dict[str, Any] = {"name": "steps", "title": "Steps", "status": "done", "seconds": 1.0}
    return Section(**(fields | changes))


FULL = report(
    section(
        findings=(Finding(name="cores", value="2"),),
        checks=(
            Check(name="adam", passed=False, detail="relative error 1 | <b>"),
            Check(name="b", passed=True),
        ),
        figures=(
            Figure.of("step", "topk", "ms", [3.0, 1.0, 2.0]),
            Figure.of("ratio", "topk / product", "", [2.0]),
            Figure.of("step", "relu", "ms", [9.0]),
        ),
        left_out=(LeftOut(name="gated", why="out of time"),),
    ),
    section(name="peers", title="Peers", status="skipped", reason="no clone"),
)


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    FULL.write(tmp_path / "doctor.json")
    assert read_report(tmp_path / "doctor.json") == FULL
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]


def test_the_schema_is_version_1() -> None:
    """Readers elsewhere rely on these names. Whoever changes one raises SCHEMA_VERSION."""

    def keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: keys(item) for key, item in value.items()}
        return [keys(item) for item in value[:1]] if isinstance(value, list) else type(value).__name__

    written = json.loads(FULL.model_dump_json())
    assert keys(written) == {
        "schema_version": "int", "saecache": "str", "date": "str", "command": "str", "device": "str",
        "backend": "str", "load": "float", "seconds": "float", "interrupted": "bool",
        "settings": {"rows": "str"},
        "sections": [{
            "name": "str", "title": "str", "status": "str", "reason": "str", "seconds": "float",
            "findings": [{"name": "str", "value": "str"}],
            "checks": [{"name": "str", "passed": "bool", "detail": "str"}],
            "figures": [{
                "group": "str", "name": "str", "unit": "str", "median": "float", "low": "float",
                "high": "float", "rounds": "int",
            }],
            "left_out": [{"name": "str", "why": "str"}],
        }],
    }  # fmt: skip
    assert written["schema_version"] == 1


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"sections": [{"name": "x"}]}, {"more": 1}])
def test_other_documents_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "doctor.json"
    path.write_text(json.dumps(json.loads(FULL.model_dump_json()) | change))
    with pytest.raises(UsageError, match=r"doctor\.json is not a valid Report"):
        read_report(path)


def test_a_failed_check_or_section_is_a_failure_and_what_was_left_out_is_none() -> None:
    good = section(checks=(Check(name="a", passed=True),), left_out=(LeftOut(name="b", why="no time"),))
    assert report(good, section(status="skipped", reason="out of time")).passed
    assert not report(good, section(status="failed", reason="OSError")).passed
    assert not FULL.passed


def test_markdown_has_everything_that_was_found() -> None:
    text = render(FULL)
    assert "**1 of 2 checks FAILED**" in text
    assert "| adam | relative error 1 \\| &lt;b> |" in text
    assert "| topk | 2 (1 to 3) ms | 3 |\n| relu | 9 ms | 1 |" in text, "figures of a group stay together"
    assert "| gated | out of time |" in text
    assert "### Peers (skipped: no clone)" in text
    assert "all 0 checks passed; backend" in render(report())
    assert "1 of 2 checks FAILED**, **1 part was left out for lack of time**; backend" in text


def test_a_section_that_had_no_time_is_counted_in_the_headline() -> None:
    good = section(left_out=(LeftOut(name="b", why="out of time"), LeftOut(name="c", why="no GPU")))
    late = section(status="skipped", reason="out of time: the limit is 60 s")
    assert "**2 parts were left out for lack of time**" in render(report(good, late))
