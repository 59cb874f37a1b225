"""Fills the results of ``docs/reliability.md`` from the runs in ``docs/reliability``: ``make stress-docs``.

Each of them is the ``stress.json`` of a run. A test compares the page with what this makes.
"""

from pathlib import Path

from .outcomes import WRONG, Outcomes

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
RUNS = PAGE.with_suffix("")
BEGIN, END = "<!-- stress -->\n", "<!-- end of stress -->"
_HEADS = {"seaweedfs": "SeaweedFS", "moto": "moto", "localbucket": "localbucket"}


def fill(page: str) -> str:
    """The text of the page with the results between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE.name} needs the marks {BEGIN.strip()} and {END}"
    runs = [Outcomes.read(path) for path in sorted(RUNS.glob("*.json"))]
    return before + BEGIN + results(runs) + END + after


def results(runs: list[Outcomes]) -> str:
    """A line for each run, by its date, and for each store the sums of all of them."""
    runs = sorted(runs, key=lambda run: str(run.facts["date"]))
    machines = sorted({f"{run.facts['machine']}, Python {run.facts['Python']}" for run in runs})
    lines = [
        "## Results",
        "",
        f"On {'; '.join(machines)}. A + after a commit: some files had changed since.",
        "",
        "| begun | options | commit | minutes | rounds | WRONG |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        *map(_line, runs),
    ]
    for store, head in _HEADS.items():
        of_it = Outcomes({})
        for run in runs:
            of_it.counts.update({key: rounds for key, rounds in run.counts.items() if key[0] == store})
        if of_it.counts:
            lines += ["", f"### {head}", *of_it.tables()]
    return "\n".join(lines) + "\n"


def _line(run: Outcomes) -> str:
    options = str(run.facts["command"]).removeprefix("python -m tests.stress.run ")
    stopped = "" if run.facts["finished"] == "yes" else ", stopped"
    wrong = sum(rounds for (_, _, outcome), rounds in run.counts.items() if outcome == WRONG)
    return (
        f"| {run.facts['date']} | `{options}`{stopped} | {run.facts.get('commit') or 'not noted'} "
        f"| {run.facts['minutes']} | {run.counts.total():,} | {wrong} |"
    )


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text("utf-8")), "utf-8")
    print(f"wrote {PAGE}")
