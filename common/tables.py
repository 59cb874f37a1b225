"""Tables for the terminal."""

from collections.abc import Collection, Sequence


def align_columns(rows: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """A line for each of ``rows``; columns whose numbers are in ``right`` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_columns(rows: Sequence[Sequence[str]], num_text: int) -> str:
    """Align ``rows``, the first of which holds the heads; a rule is drawn below it.

    Args:
        num_text: so many columns, the first ones, are aligned to the left; the others to the right.
    """
    rule = ["-" * max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(align_columns([rows[0], rule, *rows[1:]], range(num_text, len(rows[0]))))
