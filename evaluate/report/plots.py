"""Writes the figures of a report as SVG, PNG and CSV, by matplotlib."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import UsageError
from ...common.outputs import check_folder_output
from ...store.durable import write_bytes
from .comparison import OverlapMatrix, make_overlap
from .data import gather
from .figure import Figure, Series
from .figures import make_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, with other markers and dashes: told apart without colours too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#d08c00", "#46a5dc", "#6b4c9a", "#666666")
_MARKERS = ("o", "s", "^", "D", "X", "v", "*", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)))
_STYLE = {
    "svg.hashsalt": "saecache",  # equal figures are equal bytes
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e9ecf0",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}
_DPI = 200
_LONGEST_NAME = 100  # of a file: a title holds a hook, which results of others name


def write_figures(
    run_dirs: Sequence[Path | str], folder: Path | str, *, results: Path | str | None = None
) -> list[Path]:
    """Write every figure of the report as SVG, PNG and CSV into ``folder``.

    Returns:
        The files, three for each figure, named by the section and the title.

    Raises:
        UsageError: as :func:`.page.write_report`; or matplotlib is not installed.
    """
    folder = Path(folder)
    check_folder_output(folder)
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UsageError(
            "figures are drawn by matplotlib, which is not installed: pip install 'saecache[figures]'"
        ) from None
    data = gather([Path(run) for run in run_dirs], None if results is None else Path(results), 0)
    names = [entry.name for entry in data.entries]
    written: list[Path] = []
    with matplotlib.rc_context(_STYLE):
        for figure in make_figures(data.entries):
            canvas = Canvas(figsize=(4.6, 3.3), layout="constrained")
            path = folder / f"{figure.section}-{_file_name(figure.title)}"
            try:
                _draw(canvas.add_subplot(), figure, names)
                written += _save(canvas, path, _table(figure, names))
            except (ValueError, ArithmeticError) as error:
                raise UsageError(
                    f"matplotlib cannot draw {path.name} ({error!s:.300}): the results hold numbers that "
                    "contradict one another; measure again"
                ) from None
        overlap = make_overlap(data.measured, data.entries)
        if overlap is not None:
            side = 1.6 + 0.45 * len(names)
            canvas = Canvas(figsize=(side + 0.6, side), layout="constrained")
            _draw_overlap(canvas.add_subplot(), overlap)
            written += _save(canvas, folder / "overlap-mmcs", _overlap_table(overlap))
    return written


def _save(canvas: Any, path: Path, table: list[list[Any]]) -> list[Path]:
    """The files of one figure. Dates and versions are left out, so that equal figures are equal bytes."""
    files = []
    for kind in ("svg", "png"):
        content = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        canvas.savefig(content, format=kind, dpi=_DPI, metadata=metadata)
        files.append((path.with_name(f"{path.name}.{kind}"), content.getvalue()))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    files.append((path.with_name(f"{path.name}.csv"), text.getvalue().encode("utf-8")))
    for file, content_bytes in files:
        write_bytes(file, content_bytes)
    return [file for file, _ in files]


def _draw(axes: "Axes", figure: Figure, names: Sequence[str]) -> None:
    for series in figure.series:
        if series.points:
            _draw_series(axes, figure, series, _plain(names[series.sae]))
    points = {series.sae: series.points for series in figure.series}
    for link in figure.links:
        joined = sorted((point for sae in link for point in points[sae]), key=lambda point: point[0])
        xs, ys = zip(*joined, strict=True) if joined else ((), ())
        axes.plot(xs, ys, color="#8b95a3", linestyle=(0, (3, 3)), linewidth=0.8, zorder=1)
    if len(figure.front) > 1:
        axes.plot(*zip(*figure.front, strict=True), color="#8b95a3", alpha=0.3, linewidth=4, zorder=0)
    for axis, name in ((figure.x, "x"), (figure.y, "y")):
        getattr(axes, f"set_{name}label")(axis.label)
        if axis.log:
            getattr(axes, f"set_{name}scale")("log")
    if figure.y.zero:
        axes.set_ylim(bottom=0)
    if figure.y.end is not None:
        axes.set_ylim(top=figure.y.end)
    axes.set_title(figure.title[:100].replace("$", r"\$"), fontsize=9, loc="left")
    axes.legend(ncols=1 if len(figure.series) <= 8 else 2)


def _draw_series(axes: "Axes", figure: Figure, series: Series, name: str) -> None:
    color = _COLORS[series.sae % len(_COLORS)]
    dash = _DASHES[series.sae // len(_COLORS) % len(_DASHES)]
    xs, ys = (list(values) for values in zip(*series.points, strict=True))
    for (x, y), interval in zip(series.points, series.intervals, strict=False):
        x0, x1, y0, y1 = interval
        if x0 is not None and x1 is not None:
            axes.plot([x0, x1], [y, y], color=color, linewidth=1)
        if y0 is not None and y1 is not None:
            axes.plot([x, x], [y0, y1], color=color, linewidth=1)
    if figure.kind == "scatter":
        marker = _MARKERS[series.sae % len(_MARKERS)]
        axes.plot(xs, ys, color=color, marker=marker, linestyle="", label=name, zorder=3)
    elif figure.kind == "step" and series.end is not None:
        edges = [*xs, max(series.end, xs[-1])]
        axes.stairs(
            ys, edges, color=color, linestyle=dash, label=name, baseline=None if figure.outline else 0
        )
    else:
        axes.plot(xs, ys, color=color, linestyle=dash, label=name, linewidth=1.4)
    if series.fit:
        axes.plot(*zip(*series.fit, strict=True), color=color, linestyle=":", linewidth=0.9)


def _draw_overlap(axes: "Axes", overlap: OverlapMatrix) -> None:
    size = len(overlap.names)
    values = [
        [1.0 if row == column else overlap.values[row][column] for column in range(size)]
        for row in range(size)
    ]
    shown = [[float("nan") if value is None else value for value in row] for row in values]
    axes.imshow(shown, vmin=0, vmax=1, cmap="cividis")
    axes.grid(visible=False)
    labels = [_plain(name) for name in overlap.names]
    axes.set_xticks(range(size), labels, rotation=90)
    axes.set_yticks(range(size), labels)
    for row in range(size):
        for column, value in enumerate(values[row]):
            if value is not None:
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_title("MMCS of the row's directions in the column's", fontsize=9, loc="left")


def _table(figure: Figure, names: Sequence[str]) -> list[list[Any]]:
    """The numbers of a figure: SAE, x, y, intervals where there are some, and the fitted law."""
    intervals = any(series.intervals for series in figure.series)
    bounds = [f"{which} {end}" for which in ("x", "y") for end in ("low", "high")] if intervals else []
    fits = any(series.fit for series in figure.series)
    heads = ["sae", figure.x.label, figure.y.label, *bounds, *(["fit"] if fits else [])]
    rows: list[list[Any]] = [heads]
    for series in figure.series:
        law = dict(series.fit)
        for number, (x, y) in enumerate(series.points):
            row = [_cell(names[series.sae]), x, y]
            if intervals:
                found = series.intervals[number] if number < len(series.intervals) else [None] * 4
                row += ["" if bound is None else bound for bound in found]
            rows.append([*row, *([law.get(x, "")] if fits else [])])
    return rows


def _overlap_table(overlap: OverlapMatrix) -> list[list[Any]]:
    return [
        ["directions of", "and of", "mmcs"],
        *(
            [_cell(a), _cell(b), overlap.values[row][column]]
            for row, a in enumerate(overlap.names)
            for column, b in enumerate(overlap.names)
            if overlap.values[row][column] is not None
        ),
    ]


def _cell(name: str) -> str:
    """A name for a spreadsheet, which would take a leading = + - @ for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def _plain(name: str) -> str:
    """A name for matplotlib, which would read dollar signs as mathematics and hide a leading underscore."""
    shown = name.replace("$", r"\$")[:40]
    return f" {shown}" if shown.startswith("_") else shown


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:_LONGEST_NAME]
