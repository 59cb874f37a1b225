"""The report of ``saecache doctor`` as a document: findings, checks and figures, section by section.

The JSON file is this document. A reader refuses another ``schema_version``; a change that such a reader could
misunderstand raises it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, Self

from ..common.frozen import FrozenModel
from ..common.validation import validate
from ..store.durable import write_bytes
from ..store.untrusted_files import read_object
from .timing import Summary

SCHEMA_VERSION: Final = 1
MAX_BYTES = 4 << 20  # of a report in JSON; a real one has some 50 KiB

Status = Literal["done", "skipped", "stopped", "failed"]


class Finding(FrozenModel):
    """A fact about the machine, in words. No finding holds a credential."""

    name: str
    value: str


class Check(FrozenModel):
    """Something that must hold. ``detail`` says what was expected and what came; it is empty if nothing is to
    be said.
    """

    name: str
    passed: bool
    detail: str = ""


class Figure(FrozenModel):
    """A measurement: the median of ``rounds`` rounds, with the smallest and the largest value.

    ``unit`` is empty for a ratio. ``group`` is a title over several figures.
    """

    group: str
    name: str
    unit: str
    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, group: str, name: str, unit: str, values: Iterable[float]) -> Self:
        return cls(group=group, name=name, unit=unit, **Summary.of(values)._asdict())


class LeftOut(FrozenModel):
    """Something that was not looked at, and why."""

    name: str
    why: str


class Section(FrozenModel):
    """A part of the examination.

    Attributes:
        status: ``done``, although parts of it may be left out; ``skipped``, it never began; ``stopped``, by
            Ctrl-C; ``failed``, an error ended it. ``reason`` says why it is not done.
    """

    name: str
    title: str
    status: Status
    reason: str = ""
    seconds: float
    findings: tuple[Finding, ...] = ()
    checks: tuple[Check, ...] = ()
    figures: tuple[Figure, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


class Report(FrozenModel):
    """One run of the doctor.

    Attributes:
        command: what was typed. settings: the settings that were used, as text by name.
        device: the hardware's own name of the device that was checked; ``backend`` computes on it.
        load: the processes that wanted a core when the run began, where the system says.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    saecache: str
    date: str
    command: str
    device: str
    backend: str
    load: float | None
    seconds: float
    interrupted: bool
    settings: dict[str, str]
    sections: tuple[Section, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed and no section broke down. What was left out is no failure."""
        return not any(section.failed_checks or section.status == "failed" for section in self.sections)

    def write(self, path: Path) -> None:
        """Write the JSON file, first under a temporary name."""
        write_bytes(path, (self.model_dump_json(indent=1) + "\n").encode("utf-8"))


def read_report(path: Path) -> Report:
    """Read a JSON file of :meth:`Report.write`.

    Raises:
        UsageError: it is no report, or one of another schema version.
    """
    return validate(Report, read_object(path, "run saecache doctor again", MAX_BYTES), str(path))
