"""What commands that move bytes share: their options, their progress bar, their limits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.progress import progress_bar
from .printing import cache_facts

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..store.remote.transfer import Traffic

ConcurrencyOption = Annotated[
    int | None, typer.Option(help="Objects moved at the same time. Default: 8.", show_default=False)
]
BandwidthOption = Annotated[
    float | None, typer.Option(metavar="MB/S", help="At most so many megabytes a second, in all.")
]


def bytes_bar(what: str, total_bytes: int) -> "tqdm[Any]":
    """A progress bar in bytes, with the time that is left; on stderr."""
    return progress_bar(what, "B", total_bytes, hidden=total_bytes == 0)


@contextmanager
def transfer(
    what: str, total_bytes: int, concurrency: int | None, max_bandwidth: float | None
) -> "Iterator[Traffic]":
    """The limits of one transfer, and its progress bar while it runs."""
    from ..store.remote.transfer import DEFAULT_CONCURRENCY, Traffic

    limit = None if max_bandwidth is None else max_bandwidth * 1e6
    with bytes_bar(what, total_bytes) as bar:
        objects = DEFAULT_CONCURRENCY if concurrency is None else concurrency

        def on_progress(count: int) -> None:
            bar.update(count)

        yield Traffic(objects, limit, on_progress)


def manifest_bytes(place: str | Path) -> int:
    """Bytes of all shards of a cache."""
    return sum(file["size"] for file in cache_facts(place)["files"])
