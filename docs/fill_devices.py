"""Fills the tables of ``devices.md``: ``make device-docs``.

What was measured comes from the reports of ``saecache doctor`` in ``docs/devices/``, what is predicted from
``predictions.py``. A test compares the page with what this makes.
"""

import re
import runpy
from pathlib import Path

from saecache.doctor import Report, read_report
from saecache.doctor.markdown import render_figures, summarize

DOCS = Path(__file__).parent
PAGE = DOCS / "devices.md"


def fill(page: str) -> str:
    """The text of the page with the tables of today between its marks."""
    predicted = runpy.run_path(str(DOCS / "predictions.py"))["tables"]()
    reports = [read_report(path) for path in sorted((DOCS / "devices").glob("*.json"))]
    return _between(_between(page, "measured", measured(reports)), "predicted", predicted)


def measured(reports: list[Report]) -> str:
    """Each report: the device, what was run, and all figures."""
    lines: list[str] = []
    for report in reports:
        facts = {f.name: f.value for section in report.sections for f in section.findings}
        software = ", ".join(
            f"{name} {facts[name]}" for name in ("torch", "triton", "numba") if name in facts
        )
        lines += [f"### {report.device}", "", f"{summarize(report)}", ""]
        lines += [f"Cores: {facts.get('cores', '')}; memory {facts.get('memory', '')}; {software}.", ""]
        for section in report.sections:
            lines += render_figures(section)
    return "\n".join(lines).strip() or "No report has been added yet."


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    filled, count = re.subn(f"{begin}\n.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)
    assert count == 1, f"{PAGE.name} needs the marks {begin} and {end} once"
    return filled


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text("utf-8")), "utf-8")
    print(f"wrote {PAGE}")
