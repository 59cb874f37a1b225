"""What the benchmark scripts share: options, turns, summaries, the description of the machine, JSON.

A script lets the ways that it compares take turns, so that other work on the machine slows all of them alike,
and reports every figure as a median with its range. It then writes one JSON file to ``benchmarks/results/``,
from which ``make bench-docs`` makes ``docs/benchmarks.md``. Figures of ``--quick`` only prove that a script
works; they go to ``benchmarks/results/quick/``, which is not kept.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import saecache
from saecache.doctor.findings.machine import cpu_facts, processor_name, total_memory_bytes
from saecache.doctor.timing import (
    Cost,
    Summary,
    format_number,
    format_summary,
    ratios,
    seconds_of,
    take_turns,
    timed,
)

__all__ = [
    "Cost", "Report", "Summary", "format_number", "format_summary", "machine", "parser", "ratios",
    "seconds_of", "take_turns", "timed",
]  # fmt: skip

RESULTS = Path(__file__).parents[1] / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on. Nothing in it names a computer or a person."""
    import torch

    return {
        "processor": processor_name(cpu_facts()),
        "cores": os.cpu_count(),
        "memory_gib": round(total_memory_bytes() / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts have. The description is the script's docstring."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="a toy size, which only proves that it works")
    made.add_argument("--results", type=Path, default=RESULTS, help="the folder of the JSON file")
    made.add_argument("--label", default="", help="added to the name of the JSON file")
    return made


@dataclass
class Report:
    """The figures of one run of a script.

    Make it before measuring: the load of the machine is read at that moment.

    Attributes:
        script: name of the script, without ``.py``.
        settings: the parsed options.
        size: what was measured, in words: the first line of what is printed.
    """

    script: str
    settings: argparse.Namespace
    size: str
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))
    figures: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(self.size, flush=True)

    def add(
        self, what: str, values: Iterable[float], unit: str = "", group: str = "", decimals: int = 2
    ) -> Summary:
        """Add one figure and print it.

        Args:
            what: what was measured; of a ratio, "numerator / denominator".
            values: one for each round, seed or repetition.
            unit: "s", "GB/s", "MiB", ...; "" for a ratio or a share.
            group: a title over several figures.
            decimals: how many are shown of numbers below 10.
        """
        summary = Summary.of(values)
        titles = [figure["group"] for figure in self.figures]
        if group and group not in titles:
            print(group)
        described = {"group": group, "what": what, "unit": unit, "decimals": decimals}
        self.figures.append(described | summary._asdict())
        print(f"  {what:50} {format_summary(summary, decimals)} {unit}".rstrip(), flush=True)
        return summary

    def save(self) -> Path:
        """Write the JSON file, first under a temporary name."""
        folder = self.settings.results / "quick" if self.settings.quick else self.settings.results
        folder.mkdir(parents=True, exist_ok=True)
        label = f"-{self.settings.label}" if self.settings.label else ""
        path = folder / f"{self.script}{label}.json"
        document = {
            "script": self.script,
            "command": command_line(self.script),
            "date": datetime.now(UTC).date().isoformat(),
            "saecache": saecache.__version__,
            "machine": machine(),
            "load_before": self.load,
            "size": self.size,
            "figures": self.figures,
        }
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        unfinished.rename(path)
        print(f"wrote {path}")
        return path


def command_line(script: str) -> str:
    """What was typed, without the places of this machine."""
    words: list[str] = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=")
        if equals and value.startswith(("/", "~")):
            word = f"{option}=PATH"
        words.append("PATH" if word.startswith(("/", "~")) else word)
    return shlex.join(["python", f"benchmarks/{script}.py", *words])
