"""What a section writes down while it is at work, and how much time it has left."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .report import Check, Figure, Finding, LeftOut, Section, Status

Clock = Callable[[], float]
Say = Callable[[str], None]
OUT_OF_TIME = "out of time"


class DeviceLostError(Exception):
    """The device answers no more, so that nothing else can be checked on it."""


@dataclass(kw_only=True)
class Notes:
    """The notes of one section.

    Attributes:
        name, title: of the section.
        deadline: the reading of ``clock`` (seconds) after which no further item begins.
        say: shows progress, one line at a time.
        wait: waits for the device; a device that has failed raises here.
    """

    name: str
    title: str
    deadline: float = float("inf")
    clock: Clock = time.monotonic
    say: Say = lambda line: None
    wait: Callable[[], object] = lambda: None
    findings: list[Finding] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def seconds_left(self) -> float:
        """The seconds in which items may still begin."""
        return self.deadline - self.clock()

    def time_left(self) -> bool:
        """Whether another item may begin."""
        return self.seconds_left() > 0

    def each(self, items: Iterable[str]) -> Iterator[str]:
        """Yield the ``items`` while there is time; the rest is left out, with that reason."""
        for item in items:
            if self.time_left():
                self.say(f"{self.name}: {item}")
                yield item
            else:
                self.leave_out(item, OUT_OF_TIME)

    def find(self, name: str, value: object) -> None:
        """Write down a fact."""
        self.findings.append(Finding(name=name, value=str(value)))

    def leave_out(self, name: str, why: str) -> None:
        """Write down what is not looked at."""
        self.left_out.append(LeftOut(name=name, why=why))

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        """Write down whether something holds that must; a failure is shown at once."""
        self.checks.append(Check(name=name, passed=bool(passed), detail=detail))
        if not passed:
            self.say(f"FAILED {self.name}: {name}: {detail}")

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A block whose errors are a failed check called ``name``, so that they hide nothing that follows.

        Raises:
            DeviceLostError: the device cannot even be waited for after the error.
        """
        try:
            yield
            self.wait()
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever fails is what is looked for
            self.check(name, False, describe_error(error))
            try:
                self.wait()
            except Exception:  # noqa: BLE001
                raise DeviceLostError(f"the device was lost in {name}") from error

    def measure(self, group: str, name: str, unit: str, values: Iterable[float]) -> None:
        """Write down a measurement: one value for each round."""
        self.figures.append(Figure.of(group, name, unit, values))

    def section(self, status: Status = "done", reason: str = "") -> Section:
        """The notes as a finished section."""
        return Section(
            name=self.name,
            title=self.title,
            status=status,
            reason=reason,
            seconds=round(self.clock() - self.began, 2),
            findings=tuple(self.findings),
            checks=tuple(self.checks),
            figures=tuple(self.figures),
            left_out=tuple(self.left_out),
        )


def describe_error(error: BaseException) -> str:
    """The kind of an error, the start of its message, and the innermost place of ours that it came through.

    Places are named below the package, so that nothing says where this machine keeps its files.
    """
    place = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if str(name).startswith("saecache.") and not str(name).startswith(__package__):
            place = f" in {name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}{place}"
