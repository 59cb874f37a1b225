"""How the rounds ended, counted by store, command and what was done to it; as JSON and as Markdown."""

import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

RIGHT = "right at once"
AGAIN = "an error, then right"
RECOVERED = "killed, then right"
WRONG = "WRONG"
OUTCOMES = (RIGHT, AGAIN, RECOVERED, WRONG)
_TITLES = {
    "faults": "One fault at a random request: rounds by fault and command, and how they ended",
    "kills": "`kill -9` at request n: rounds by what followed and by command, and how they ended",
    "parties": "Several commands at once on one place",
}


@dataclass(frozen=True, order=True)
class Row:
    kind: str  # a key of _TITLES
    command: str
    what: str


@dataclass
class Outcomes:
    """``facts`` says how the run was made; ``failures`` says of each wrong end how to see it again."""

    facts: dict[str, Any]
    counts: Counter[tuple[str, Row, str]] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, store: str, row: Row, outcome: str) -> None:
        self.counts[store, row, outcome] += 1
        if self.counts.total() % 25 == 0:
            print(f"{self.counts.total()} rounds, now {store}: {row.command}, {row.what}", flush=True)

    def fail(self, store: str, row: Row, problem: str, **how: Any) -> None:
        self.add(store, row, WRONG)
        self.failures.append({"store": store, **asdict(row), "problem": problem, **how})
        print(f"WRONG: {self.failures[-1]}", flush=True)

    def write(self, folder: Path) -> None:
        """``stress.json`` and ``stress.md`` in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        counts = [
            {"store": store, **asdict(row), "outcome": outcome, "rounds": rounds}
            for (store, row, outcome), rounds in self.counts.items()
        ]
        document = {"facts": self.facts, "counts": counts, "failures": self.failures}
        (folder / "stress.json").write_text(json.dumps(document, indent=1) + "\n")
        (folder / "stress.md").write_text(self.markdown())

    @classmethod
    def read(cls, path: Path) -> Self:
        """What :meth:`write` wrote as ``stress.json``."""
        document = json.loads(path.read_text("utf-8"))
        counts: Counter[tuple[str, Row, str]] = Counter()
        for one in document["counts"]:
            row = Row(one["kind"], one["command"], one["what"])
            counts[one["store"], row, one["outcome"]] = one["rounds"]
        return cls(document["facts"], counts, document["failures"])

    def markdown(self) -> str:
        lines = [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += self.tables()
        for failure in self.failures:
            lines += ["", f"WRONG: `{json.dumps(failure)}`"]
        return "\n".join(lines) + "\n"

    def tables(self) -> list[str]:
        """A table for each kind of round."""
        lines = []
        for kind, title in _TITLES.items():
            rows = sorted({row for _, row, _ in self.counts if row.kind == kind})
            if rows:
                lines += ["", f"**{title}**", "", *self._table(rows)]
        return lines

    def _table(self, rows: list[Row]) -> list[str]:
        """What was done, how often to each command, and how that ended; one line for each thing done."""
        commands = list(dict.fromkeys(row.command for row in rows))
        ends = [outcome for outcome in OUTCOMES if self._sum(rows, [outcome]) or outcome == WRONG]
        lines = [
            f"| | {' | '.join([*commands, *ends])} |",
            "| --- |" + " ---: |" * (len(commands) + len(ends)),
        ]
        whats = sorted({row.what for row in rows})
        for what, chosen in [
            *((w, [row for row in rows if row.what == w]) for w in whats),
            ("**all**", rows),
        ]:
            each = [self._sum([row for row in chosen if row.command == name], OUTCOMES) for name in commands]
            cells = [*each, *(self._sum(chosen, [outcome]) for outcome in ends)]
            lines.append(
                f"| {what} | {' | '.join(str(cell) if cell else '' for cell in cells[:-1])} | {cells[-1]} |"
            )
        return lines

    def _sum(self, rows: Sequence[Row], outcomes: Sequence[str]) -> int:
        return sum(n for (_, row, ended), n in self.counts.items() if row in rows and ended in outcomes)


def facts_of_this_run(command: str, seed: int, stores: list[str]) -> dict[str, Any]:
    """Date, command, seed, commit and machine."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": command,
        "seed": seed,
        "stores": ", ".join(stores),
        "commit": _commit(),
        "machine": f"{_cores()} cores, {platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }


def _commit() -> str:
    """The commit whose files these are; with a ``+`` where some have changed since."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=9", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
