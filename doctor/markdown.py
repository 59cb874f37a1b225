"""A report in Markdown, for an issue, a page or a terminal."""

from collections.abc import Iterable
from itertools import groupby

from .notes import OUT_OF_TIME
from .report import Report, Section
from .timing import Summary, format_summary


def render(report: Report) -> str:
    """The whole report."""
    lines = [f"## saecache doctor on {report.device}", "", summarize(report), ""]
    for section in report.sections:
        lines += render_section(section)
    return "\n".join(lines)


def summarize(report: Report) -> str:
    """One line: what was run, and what came of it."""
    checks = [check for section in report.sections for check in section.checks]
    failed = sum(not check.passed for check in checks)
    verdict = f"**{failed} of {len(checks)} checks FAILED**" if failed else f"all {len(checks)} checks passed"
    broken = [section.name for section in report.sections if section.status == "failed"]
    verdict += f", **sections that broke down: {', '.join(broken)}**" if broken else ""
    lacking = [left.why for section in report.sections for left in section.left_out]
    lacking += [section.reason for section in report.sections if section.status == "skipped"]
    if late := sum(why.startswith(OUT_OF_TIME) for why in lacking):
        verdict += f", **{late} {'part was' if late == 1 else 'parts were'} left out for lack of time**"
    load = "" if report.load is None else f", load {report.load:g} when it began"
    stopped = ", interrupted" if report.interrupted else ""
    return (
        f"`{report.command}`: {verdict}; backend {report.backend}, {report.seconds:g} s{load}{stopped}, "
        f"{report.date}, saecache {report.saecache}."
    )


def render_section(section: Section) -> list[str]:
    """A heading, and tables of what the section holds; one line if it holds nothing."""
    state = "" if section.status == "done" else f" ({section.status}: {section.reason})"
    lines = [f"### {section.title}{state}", ""]
    if section.findings:
        rows = [(finding.name, finding.value) for finding in section.findings]
        lines += [*table(("what", "found"), rows), ""]
    if section.checks:
        passed = len(section.checks) - len(section.failed_checks)
        lines += [f"{passed} of {len(section.checks)} checks passed.", ""]
    if section.failed_checks:
        rows = [(check.name, check.detail or "does not hold") for check in section.failed_checks]
        lines += [*table(("failed check", "why"), rows), ""]
    lines += render_figures(section)
    if section.left_out:
        rows = [(left.name, left.why) for left in section.left_out]
        lines += [*table(("left out", "why"), rows), ""]
    return lines


def render_figures(section: Section) -> list[str]:
    """A table for each group, in the order in which the groups first appear."""
    groups = list(dict.fromkeys(figure.group for figure in section.figures))
    ordered = sorted(section.figures, key=lambda figure: groups.index(figure.group))
    lines = []
    for group, figures in groupby(ordered, key=lambda figure: figure.group):
        rows = []
        for figure in figures:
            summary = Summary(figure.median, figure.low, figure.high, figure.rounds)
            value = f"{format_summary(summary)} {figure.unit}".rstrip()
            rows.append((figure.name, value, str(figure.rounds)))
        lines += [*table((group, "median (range)", "rounds"), rows), ""]
    return lines


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a Markdown table."""
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(_cell(text) for text in row)} |" for row in rows),
    ]


def _cell(text: str) -> str:
    """``text`` in one line, without what ends a cell or starts a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
