"""Tables for the terminal."""

from collections.abc import Sequence


def format_columns(rows: Sequence[Sequence[str]], num_text: int) -> str:
    """Align ``rows``, the first of which holds the heads; a rule is drawn below it.

    Args:
        num_text: so many columns, the first ones, are aligned to the left; the others to the right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i < num_text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), line(["-" * width for width in widths]), *map(line, rows[1:])])
