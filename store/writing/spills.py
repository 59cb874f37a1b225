"""What shards are made from: the spill folders that a process sees, or pieces in object storage.

Of pieces a process copies a window to its own disk, a range of neighbouring rows of one hook, and writes the
shards of that window before it copies the next. So it needs room for one window only.
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ..durable import write_all
from ..encoding.records import RecordLayout
from ..layout import Layout
from .blocks import Block
from .journal import WORK_FOLDER, Journal
from .pieces import TOKEN_BYTES, PieceIndex, PieceStore
from .shuffle import ShuffledSpill

WINDOW_BYTES = 16 << 30  # of rows; small ones cost requests: each reads a range of every block of every piece
_REQUESTS_AT_ONCE = 8

InUse = Callable[[], Iterable[Future[Any]]]


class Spills(Protocol):
    """Rows in stored order, and token arrays in reading order."""

    def rows(self, hook: int | None, split: str, start: int, stop: int) -> ShuffledSpill:
        """What has the stored rows ``start:stop`` of the hook of this number, or without one the tokens.

        It is closed when other rows are asked for.
        """

    def sequences(self, name: str, start: int, count: int) -> NDArray[np.int32]:
        """``count`` sequences of the token array ``name``, int32 [count, context]."""

    def keep_within(self, units: Iterable[tuple[str, int]]) -> None:
        """Only these shards (array, number) are going to be written by this process."""

    def close(self) -> None: ...


class FolderSpills:
    """The spill folders of all processes, and blocks of rows in memory. Arguments as of ShuffledSpill."""

    def __init__(
        self,
        folders: Sequence[Path],
        journal: Journal,
        *,
        limit_bytes: int,
        in_use: InUse,
        in_memory: Sequence[Block],
        drop_pages: bool,
        record_bytes: int,
    ) -> None:
        self._token_arrays, self._context = folders[0], journal.identity["context"]
        self._shuffled = ShuffledSpill(
            folders,
            journal.identity["seed"],
            journal.num_buckets,
            limit_bytes=limit_bytes,
            in_use=in_use,
            in_memory=in_memory,
            drop_pages=drop_pages,
            record_bytes=record_bytes,
        )

    def rows(self, hook: int | None, split: str, start: int, stop: int) -> ShuffledSpill:
        return self._shuffled

    def sequences(self, name: str, start: int, count: int) -> NDArray[np.int32]:
        return _read_sequences(self._token_arrays / name, self._context, start, count)

    def keep_within(self, units: Iterable[tuple[str, int]]) -> None:
        """Everything is here already."""

    def close(self) -> None:
        self._shuffled.close()


class PieceSpills:
    """The pieces of a journal.

    Args:
        cache: the folder of this process, below which windows are copied.
        journal: with pieces.
        layout: of the cache.
        store: has the pieces.
        limit_bytes, in_use: as of ShuffledSpill.
    """

    def __init__(
        self,
        cache: Path,
        journal: Journal,
        layout: Layout,
        store: PieceStore,
        *,
        limit_bytes: int,
        in_use: InUse,
    ) -> None:
        self._folder = cache / WORK_FOLDER / "window"
        self._journal, self._layout, self._store = journal, layout, store
        self._limit_bytes, self._in_use = limit_bytes, in_use
        self._records = [RecordLayout(width, layout.dtype) for width in layout.hooks.values()]
        self._stops: dict[str, int] = {}  # array -> the shard before which this process ends
        self._indices: list[PieceIndex] | None = None
        self._window: tuple[tuple[int | None, str, range], ShuffledSpill] | None = None
        self._threads = ThreadPoolExecutor(_REQUESTS_AT_ONCE, "saecache-pieces")
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed

    def keep_within(self, units: Iterable[tuple[str, int]]) -> None:
        for array, shard in units:
            self._stops[array] = max(self._stops.get(array, 0), shard + 1)

    def rows(self, hook: int | None, split: str, start: int, stop: int) -> ShuffledSpill:
        if self._window is not None:
            (its_hook, its_split, its_rows), shuffled = self._window
            if (its_hook, its_split) == (hook, split) and its_rows.start <= start <= stop <= its_rows.stop:
                return shuffled
        self._close_window()
        rows = range(start, stop)
        if split == "heldout":  # which are in reading order: each range has rows of all blocks
            rows = range(self._layout.heldout_rows)
        else:
            rows = range(start, max(stop, min(start + self._rows_of_window(hook), self._stop_row(hook))))
        shuffled = self._open_window(hook, split, rows)
        self._window = (hook, split, rows), shuffled
        return shuffled

    def sequences(self, name: str, start: int, count: int) -> NDArray[np.int32]:
        context, first = self._journal.identity["context"], 0
        found = [np.empty((0, context), np.int32)]
        for piece in self._journal.pieces:
            low, high = max(start, first), min(start + count, first + piece.sequences)
            if low < high:
                path = self._folder / piece.name
                self._folder.mkdir(exist_ok=True)
                size = 4 * context * piece.sequences
                self._store.fetch(piece.name, name, path, size, piece.digest(name))
                found.append(_read_sequences(path, context, low - first, high - low))
                path.unlink()
            first += piece.sequences
        return np.concatenate(found)

    def close(self) -> None:
        self._close_window()
        self._threads.shutdown(cancel_futures=True)
        self._indices = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _close_window(self) -> None:
        if self._window is not None:
            self._window[1].close()
            self._window = None
            shutil.rmtree(self._folder / "rows")

    def _row_bytes(self, hook: int | None) -> int:
        return TOKEN_BYTES + (0 if hook is None else self._records[hook].record_bytes)

    def _rows_of_window(self, hook: int | None) -> int:
        return WINDOW_BYTES // self._row_bytes(hook)

    def _stop_row(self, hook: int | None) -> int:
        """The training row at which this process ends."""
        array = "train.token" if hook is None else f"train.hook.{hook}"
        shards = self._stops.get(array, self._layout.token("train").num_shards)
        return min(shards * self._layout.shard_rows, self._layout.train_rows)

    def _open_window(self, hook: int | None, split: str, rows: range) -> ShuffledSpill:
        """Copy all buckets that have some of the stored ``rows``."""
        indices = self._read_indices()
        buckets = self._journal.num_buckets
        totals = sum((index.bucket_rows for index in indices), np.zeros(buckets + 1, np.int64))
        ends = np.cumsum(totals[:-1])
        if split == "heldout":
            first, last, before = buckets, buckets + 1, 0
        else:
            first = int(np.searchsorted(ends, rows.start, side="right"))
            last = int(np.searchsorted(ends, max(rows.stop - 1, rows.start), side="right")) + 1
            before = int(ends[first - 1]) if first else 0
        folder = self._folder / "rows"
        folder.mkdir(parents=True)
        self._copy_segments(indices, first, last, folder)
        self._copy_rows(indices, first, last, 0, TOKEN_BYTES, folder / "token")
        if hook is not None:
            row_bytes = self._records[hook].record_bytes
            self._copy_rows(indices, first, last, 1 + hook, row_bytes, folder / f"hook.{hook}")
        return ShuffledSpill(
            [folder],
            self._journal.identity["seed"],
            buckets,
            limit_bytes=self._limit_bytes,
            in_use=self._in_use,
            record_bytes=self._row_bytes(hook),
            rows_before=before,
            in_reading_order=False,
        )

    def _read_indices(self) -> list[PieceIndex]:
        """Read the indices of all pieces with rows; they are copied to this machine once."""
        if self._indices is None:
            folder = self._folder / "indices"
            folder.mkdir(parents=True, exist_ok=True)
            hooks, buckets = len(self._records), self._journal.num_buckets

            def read(number: int) -> PieceIndex:
                path = folder / str(number)
                return PieceIndex(self._journal.pieces[number], hooks, buckets, path, self._store)

            wanted = [i for i, piece in enumerate(self._journal.pieces) if piece.rows]
            self._indices = list(self._threads.map(read, wanted))
        return self._indices

    def _copy_segments(self, indices: Sequence[PieceIndex], first: int, last: int, folder: Path) -> None:
        with (folder / "segments").open("wb") as file:
            for index in indices:
                for block in index.blocks(first, last, 0, TOKEN_BYTES):
                    counts = np.zeros(self._journal.num_buckets + 1, "<u4")
                    counts[first:last] = block.counts
                    write_all(file, counts.data)

    def _copy_rows(
        self, indices: Sequence[PieceIndex], first: int, last: int, number: int, row_bytes: int, path: Path
    ) -> None:
        """Write the rows of the buckets ``first:last``, of the file of this number of every piece."""
        name = "token" if number == 0 else f"hook.{number - 1}"

        def reads() -> Iterator[Future[NDArray[np.uint8]]]:
            for index in indices:
                for block in index.blocks(first, last, number, row_bytes):
                    for extent in block.extents:
                        yield self._threads.submit(
                            self._store.read, index.piece.name, name, row_bytes, extent
                        )

        with path.open("wb", buffering=0) as file:
            _write_in_order(file, reads())


def _write_in_order(file: BinaryIO, reads: Iterator[Future[NDArray[np.uint8]]]) -> None:
    """Write what the reads bring, in their order, while the next ones are under way."""
    under_way: deque[Future[NDArray[np.uint8]]] = deque()
    for read in reads:
        under_way.append(read)
        if len(under_way) >= 2 * _REQUESTS_AT_ONCE:
            write_all(file, under_way.popleft().result().data)
    for read in under_way:
        write_all(file, read.result().data)


def _read_sequences(path: Path, context: int, start: int, count: int) -> NDArray[np.int32]:
    rows = np.fromfile(path, "<i4", count=count * context, offset=4 * context * start)
    return rows.reshape(-1, context)
