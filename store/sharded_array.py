"""One array of a cache, read through memory maps of its shard files."""

import mmap
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptCacheError
from .layout import ArraySpec, index_size
from .shard_file import CRC_BYTES, crc32c, parse_index

MAX_OPEN_SHARDS = 32


class ShardedArray:
    """Rows by slice, number or array of numbers -> ``np.ndarray``. Safe to use from several threads.

    Every inner chunk is checked against its crc32c the first time it is touched; a shard of the wrong size, a bad
    index or a bad chunk raises :class:`CorruptCacheError` with its name.
    """

    def __init__(self, root: Path, spec: ArraySpec) -> None:
        self.spec = spec
        self.shape = spec.shape
        self.dtype = np.dtype(spec.dtype)
        self._root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[int, tuple[mmap.mmap, NDArray[np.int64]]] = OrderedDict()
        self._checked = np.zeros(spec.num_shards * spec.chunks_per_shard, dtype=np.bool_)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            rows = np.arange(start, stop, step)
            return self.gather(rows)
        if isinstance(key, int | np.integer):
            return self.gather(np.array([key]))[0]
        return self.gather(np.asarray(key))

    def gather(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Rows by number, int [n] -> [n, ...]; negative numbers count from the end."""
        rows = np.asarray(rows, dtype=np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"row out of range for {self.spec.path} with {len(self)} rows")
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        chunk_numbers = rows // self.spec.chunk_rows
        order = np.argsort(chunk_numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(chunk_numbers[order])) + 1
        for group in np.split(order, cuts) if len(order) else []:
            number = int(chunk_numbers[group[0]])
            out[group] = self.chunk(number)[rows[group] - number * self.spec.chunk_rows]
        return out

    def chunk(self, number: int) -> NDArray[Any]:
        """Inner chunk ``number`` of the array as a view of the file, [chunk_rows, ...] (padding included)."""
        shard, slot = divmod(number, self.spec.chunks_per_shard)
        mapped, offsets = self._shard(shard)
        shape = (self.spec.chunk_rows, *self.shape[1:])
        offset = int(offsets[slot])
        if offset < 0:
            return np.zeros(shape, dtype=self.dtype)
        stored = np.frombuffer(mapped, np.uint8, self.spec.chunk_bytes + CRC_BYTES, offset)
        payload = stored[:-CRC_BYTES]
        if not self._checked[number]:
            if crc32c(payload) != stored[-CRC_BYTES:].tobytes():
                raise CorruptCacheError(
                    f"{self._root / self.spec.shard_path(shard)}: chunk {slot} does not match its crc32c"
                )
            self._checked[number] = True
        return payload.view(self.dtype).reshape(shape)

    def _shard(self, shard: int) -> tuple[mmap.mmap, NDArray[np.int64]]:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
            path = self._root / self.spec.shard_path(shard)
            try:
                size = path.stat().st_size
                if size < index_size(self.spec.chunks_per_shard):
                    raise CorruptCacheError(f"{path}: truncated to {size} bytes")
                with path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError:
                raise CorruptCacheError(f"{path}: the shard is missing") from None
            tail = mapped[size - index_size(self.spec.chunks_per_shard) :]
            self._open[shard] = mapped, parse_index(tail, self.spec, shard, size)
            while len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            return self._open[shard]
