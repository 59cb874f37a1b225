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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import saecache

RESULTS = Path(__file__).parents[1] / "results"
Key = TypeVar("Key")


class Cost(NamedTuple):
    """Seconds on the clock, and seconds of processor time over all threads of this process."""

    seconds: float
    cpu_seconds: float


class Summary(NamedTuple):
    """The median of some rounds, with the smallest and the largest value."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Summary":
        found = [float(value) for value in values]
        return cls(median(found), min(found), max(found), len(found))


def timed(work: Callable[[], object]) -> Cost:
    """What a call costs."""
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - started, time.process_time() - cpu_started)


def take_turns(
    ways: Mapping[Key, Callable[[], Any]],
    rounds: int,
    warm_up: int = 1,
    after_round: Callable[[], None] | None = None,
) -> dict[Key, list[Any]]:
    """Call every way once a round and return what each returned, the first ``warm_up`` rounds left out.

    A way returns its own measurement (as :func:`timed` makes it). ``after_round`` cleans up, untimed.
    """
    results: dict[Key, list[Any]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            result = way()
            if number >= warm_up:
                results[name].append(result)
        if after_round is not None:
            after_round()
    return results


def seconds_of(costs: Mapping[Key, Sequence[Cost]]) -> dict[Key, list[float]]:
    """The seconds on the clock of what took turns."""
    return {name: [cost.seconds for cost in found] for name, found in costs.items()}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Round by round: both values of a ratio come from the same round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def machine() -> dict[str, Any]:
    """What the figures depend on. Nothing in it names a computer or a person."""
    import torch

    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    processor = facts.get("model name", platform.processor() or platform.machine())
    if family := facts.get("cpu family"):
        processor += f" (family {family}, model {facts.get('model')})"
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(pages * page_bytes / 2**30),
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


def format_summary(summary: Summary, decimals: int = 2) -> str:
    """As "1.02 (0.98 to 1.10)"; without a range where it is a single value."""
    middle, low, high = (format_number(value, decimals) for value in summary[:3])
    return middle if low == high else f"{middle} ({low} to {high})"


def format_number(value: float, decimals: int = 2) -> str:
    """Three significant digits, or more ``decimals``; whole numbers from 1,000 on."""
    size = abs(value)
    if value == round(value) or size >= 1000:
        return f"{value:,.0f}"
    if size < 0.1 and decimals == 2:
        return f"{value:.2g}"
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else decimals}f}"
