"""Makes ``docs/benchmarks.md`` from the JSON files that the scripts wrote: ``make bench-docs``."""

import ast
import json
from itertools import groupby
from pathlib import Path
from typing import Any

from measuring import RESULTS, Summary, format_summary

BENCHMARKS = Path(__file__).parents[1]
PAGE = BENCHMARKS.parent / "docs" / "benchmarks.md"
INTRODUCTION = """\
# Benchmarks

<!-- Made by "make bench-docs" from benchmarks/results/*.json. Do not edit it: run a script again instead. -->

Each section is one run of a script in `benchmarks/`. What is compared takes turns within the run, so that
other work on the machine slows all of it alike. Every figure is the median of the rounds, with the smallest
and the largest value in brackets; a ratio is taken within each round. "Load" is the number of processes
that wanted a core when the script began: above zero, other programs ran too, and times in seconds are then
longer than on a quiet machine. Ratios suffer less, but a wide range says that a figure means little: run
the script again on a quiet machine.

`make bench` runs every script at a toy size, to see that it works. `python benchmarks/NAME.py` measures.
**Nothing on this page was measured on a GPU** unless its machine line names one.
"""


def render(results: Path = RESULTS) -> str:
    """The page, in Markdown."""
    sections = [render_run(json.loads(path.read_text("utf-8"))) for path in sorted(results.glob("*.json"))]
    return "\n".join([INTRODUCTION, *sections])


def render_run(run: dict[str, Any]) -> str:
    """One section."""
    machine = run["machine"]
    graphics = f", {machine['gpu']}" if machine["gpu"] else ""
    lines = [
        f"## {first_line(run['script'])}",
        "",
        f"{run['size']}.",
        "",
        f"`{run['command']}`",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB{graphics}; load "
        f"{run['load_before']:g}; {run['date']}, saecache {run['saecache']}, torch {machine['torch']}, "
        f"Python {machine['python']}.",
        "",
    ]
    for group, figures in groupby(run["figures"], key=lambda figure: figure["group"]):
        heading = group or "what"
        lines += [f"| {heading} | median (range) | rounds |", "|---|---|---|"]
        for figure in figures:
            summary = Summary(*(figure[name] for name in Summary._fields))
            value = f"{format_summary(summary, figure.get('decimals', 2))} {figure['unit']}".rstrip()
            lines.append(f"| {figure['what']} | {value} | {summary.rounds} |")
        lines.append("")
    return "\n".join(lines)


def first_line(script: str) -> str:
    """What a script measures: the first line of its docstring."""
    tree = ast.parse((BENCHMARKS / f"{script}.py").read_text("utf-8"))
    return (ast.get_docstring(tree) or script).splitlines()[0].rstrip(".:")


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
    print(f"wrote {PAGE}")
