"""How things are timed: in turns, so that other work on the machine slows all of them alike; as medians."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch

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


def timed(work: Callable[[], object], wait: Callable[[], object] | None = None) -> Cost:
    """What a call costs. ``wait`` waits for a device: before the clock starts, and before it stops."""
    if wait is not None:
        wait()
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    if wait is not None:
        wait()
    return Cost(time.perf_counter() - started, time.process_time() - cpu_started)


def take_turns(
    ways: Mapping[Key, Callable[[], Any]],
    rounds: int,
    warm_up: int = 1,
    after_round: Callable[[], None] | None = None,
    time_left: Callable[[], bool] = lambda: True,
) -> dict[Key, list[Any]]:
    """Call every way once a round and return what each returned, the first ``warm_up`` rounds left out.

    A way returns its own measurement (as :func:`timed` makes it). ``after_round`` cleans up, untimed. Once
    ``time_left()`` is False no further round begins after the first that counts.
    """
    results: dict[Key, list[Any]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        if number > warm_up and not time_left():
            break
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


def waiting_for(device: "torch.device") -> Callable[[], None]:
    """A function that waits until ``device`` has done all that was asked of it."""
    import torch

    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


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
