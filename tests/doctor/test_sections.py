"""Sections keep their time, by a clock that the tests turn, and none hides the others."""

from collections.abc import Callable

import pytest

from saecache.doctor.notes import DeviceLostError, Notes, describe_error
from saecache.doctor.sections import Part, run_sections


class FakeClock:
    """Seconds that pass when the work says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def part(name: str, work: Callable[[Notes], None], seconds: float = 60, **options: object) -> Part:
    return Part(name=name, title=name.title(), seconds=seconds, work=work, **options)  # type: ignore[arg-type]


def items_of(clock: FakeClock, count: int, seconds: float) -> Callable[[Notes], None]:
    """Work of ``count`` items that take ``seconds`` each."""

    def work(notes: Notes) -> None:
        for name in notes.each(map(str, range(count))):
            clock.now += seconds
            notes.check(name, True)

    return work


def test_no_item_begins_after_the_budget_of_its_section(clock: FakeClock) -> None:
    (section,), _ = run_sections([part("a", items_of(clock, 5, 4), seconds=10)], 1000, clock=clock)
    assert [check.name for check in section.checks] == ["0", "1", "2"]  # the third began after 8 s
    assert [(left.name, left.why) for left in section.left_out] == [
        ("3", "out of time"),
        ("4", "out of time"),
    ]
    assert (section.status, section.seconds) == ("done", 12)


def test_sections_without_time_are_skipped_with_the_reason(clock: FakeClock) -> None:
    parts = [part(name, items_of(clock, 3, 5)) for name in "abc"]
    sections, interrupted = run_sections(parts, 22, clock=clock)
    assert [section.status for section in sections] == ["done", "done", "skipped"]
    assert [len(section.checks) for section in sections] == [3, 2, 0]
    assert sections[1].left_out[0].why == "out of time"  # the limit of all ends its budget
    assert sections[2].reason == "out of time: the limit is 22 s"
    assert not interrupted


def test_ctrl_c_keeps_what_was_done(clock: FakeClock) -> None:
    def stopped(notes: Notes) -> None:
        notes.check("before", True)
        raise KeyboardInterrupt

    done = items_of(clock, 1, 1)
    sections, interrupted = run_sections(
        [part("a", done), part("b", stopped), part("c", done)], 60, clock=clock
    )
    assert [(s.status, s.reason) for s in sections] == [
        ("done", ""), ("stopped", "interrupted"), ("skipped", "interrupted"),
    ]  # fmt: skip
    assert [check.name for check in sections[1].checks] == ["before"]
    assert interrupted


def test_an_error_ends_its_section_only(clock: FakeClock) -> None:
    def fails(notes: Notes) -> None:
        notes.find("a", 1)
        raise OSError("the disk is gone")

    sections, _ = run_sections([part("a", fails), part("b", items_of(clock, 1, 1))], 60, clock=clock)
    assert [section.status for section in sections] == ["failed", "done"]
    assert "OSError: the disk is gone" in sections[0].reason
    assert sections[0].findings


def test_a_failing_attempt_is_a_failed_check_and_others_go_on() -> None:
    notes = Notes(name="a", title="A")
    with notes.attempt("kernel"):
        raise ArithmeticError("no such\n  instruction")
    with notes.attempt("other"):
        notes.check("other", True)
    assert [(check.name, check.passed) for check in notes.checks] == [("kernel", False), ("other", True)]
    assert notes.checks[0].detail.startswith("ArithmeticError: no such instruction")


def test_an_error_that_only_waiting_shows_is_of_the_attempt() -> None:
    """A GPU reports the failure of a kernel when it is waited for."""
    errors = [RuntimeError("illegal address")]

    def wait() -> None:
        if errors:
            raise errors.pop()

    notes = Notes(name="a", title="A", wait=wait)
    with notes.attempt("kernel"):
        pass
    assert [(check.name, check.passed) for check in notes.checks] == [("kernel", False)]


def test_a_lost_device_ends_what_needs_it(clock: FakeClock) -> None:
    def lost() -> None:
        raise RuntimeError("device lost")

    def work(notes: Notes) -> None:
        with notes.attempt("kernel"):
            raise RuntimeError("illegal address")

    parts = [
        part("a", work), part("b", items_of(clock, 1, 1)),
        part("c", items_of(clock, 1, 1), uses_device=False),
    ]  # fmt: skip
    sections, _ = run_sections(parts, 60, clock=clock, wait=lost)
    assert [section.status for section in sections] == ["failed", "skipped", "done"]
    assert sections[1].reason == "the device was lost in kernel"
    assert not sections[0].checks[0].passed


def test_what_this_machine_cannot_run_says_why(clock: FakeClock) -> None:
    parts = [part("a", items_of(clock, 1, 1), not_here="no GPU")]
    (section,), _ = run_sections(parts, 60, clock=clock)
    assert (section.status, section.reason) == ("skipped", "no GPU")


def test_errors_name_our_place_and_no_folder() -> None:
    from saecache.train.pairs import Pairs

    try:
        Pairs.from_rows(None, None, None, 1, 1)  # type: ignore[arg-type]
    except AttributeError as error:
        told = describe_error(error)
    assert "in saecache.train.pairs, line " in told
    assert "/" not in told
    assert issubclass(DeviceLostError, Exception)
