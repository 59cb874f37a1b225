"""Run sections one after the other within their time; nothing that happens in one hides the others."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .notes import OUT_OF_TIME, Clock, DeviceLostError, Notes, Say, describe_error
from .report import Section


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section to be run.

    Attributes:
        seconds: after which no further item of it begins.
        work: fills its notes.
        uses_device: it is skipped once the device is lost.
        not_here: why it cannot be run on this machine; empty if it can.
    """

    name: str
    title: str
    seconds: float
    work: Callable[[Notes], None]
    uses_device: bool = True
    not_here: str = ""


def run_sections(
    parts: Sequence[Part],
    limit_seconds: float,
    *,
    clock: Clock = time.monotonic,
    say: Say = lambda line: None,
    wait: Callable[[], object] = lambda: None,
) -> tuple[list[Section], bool]:
    """Run ``parts`` in order; return their sections, and whether Ctrl-C ended the run.

    Args:
        limit_seconds: of all parts together. A part that has no time left is skipped, as are those after
            Ctrl-C and, if they use the device, those after its loss.
        clock: gives seconds. say: shows progress. wait: waits for the device.
    """
    began, sections, interrupted, lost = clock(), [], False, ""
    for part in parts:
        left = limit_seconds - (clock() - began)
        notes = Notes(
            name=part.name,
            title=part.title,
            deadline=clock() + min(part.seconds, left),
            clock=clock,
            say=say,
            wait=wait if part.uses_device else lambda: None,
        )
        if reason := _reason_to_skip(part, left, limit_seconds, interrupted=interrupted, lost=lost):
            sections.append(notes.section("skipped", reason))
            continue
        say(part.name)
        try:
            part.work(notes)
            sections.append(notes.section())
        except KeyboardInterrupt:
            interrupted = True
            sections.append(notes.section("stopped", "interrupted"))
        except DeviceLostError as error:
            lost = str(error)
            sections.append(notes.section("failed", lost))
        except Exception as error:  # noqa: BLE001 - the other sections can still say something
            sections.append(notes.section("failed", describe_error(error)))
    return sections, interrupted


def _reason_to_skip(part: Part, left: float, limit: float, *, interrupted: bool, lost: str) -> str:
    """Why ``part`` is not run; empty if it is."""
    if interrupted:
        return "interrupted"
    if part.not_here:
        return part.not_here
    if lost and part.uses_device:
        return lost
    return f"{OUT_OF_TIME}: the limit is {limit:g} s" if left <= 0 else ""
