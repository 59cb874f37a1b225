"""A shard that is checked while its bytes stream past: nothing but one chunk is kept."""

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from ..finite import check_finite
from ..layout import ArraySpec, index_size
from ..shard_file import check_all_stored, check_crc, decode_chunk, parse_index
from .places.object_requests import ObjectRequests


class ShardStream:
    """Compares a shard with its index: every chunk is there, matches its crc32c, and is finite numbers.

    ``problems`` has a line for each that does not, once all bytes were given to :meth:`take`.

    Args:
        tail: the last bytes of the shard, as many as ``index_size`` says.
        spec: the array of the shard.
        shard: its number in the array.
        size: its bytes.
    """

    def __init__(self, tail: bytes, spec: ArraySpec, shard: int, size: int) -> None:
        self.problems: list[str] = []
        self._spec, self._where = spec, spec.shard_path(shard)
        self._first = shard * spec.chunks_per_shard
        self._position = 0
        self._chunk = bytearray()
        self._waiting: list[int] = []  # slots that are still to come, the next one last
        try:
            self._index = parse_index(tail, spec, self._where, size)
            self._index = self._index[: spec.chunks_of_shard(shard)]
            check_all_stored(self._index[:, 0], self._where)
        except CorruptCacheError as error:
            self.problems.append(str(error))
        else:
            self._waiting = np.argsort(-self._index[:, 0], kind="stable").tolist()

    def take(self, block: bytes) -> None:
        """The next bytes of the shard."""
        rest = memoryview(block)
        while self._waiting and len(rest):
            slot = self._waiting[-1]
            start, stored_bytes = self._index[slot].tolist()
            first = max(start - self._position, 0)
            last = min(start + stored_bytes - self._position, len(rest))
            self._chunk += rest[first:last]
            if len(self._chunk) == stored_bytes:
                self._check(np.frombuffer(self._chunk, np.uint8), slot)
                self._waiting.pop()
                self._chunk = bytearray()
            else:
                last = len(rest)
            self._position += last
            rest = rest[last:]

    def _check(self, stored: NDArray[np.uint8], slot: int) -> None:
        try:
            check_crc(stored, slot, self._where)
            payload = decode_chunk(stored, self._spec, slot, self._where)
            check_finite(payload, self._spec, self._first + slot, self._where)
        except CorruptCacheError as error:
            self.problems.append(str(error))


def open_shard_stream(folder: ObjectRequests, spec: ArraySpec, shard: int, size: int) -> ShardStream:
    """Ask for the index of a shard of ``size`` bytes; for use inside :meth:`ObjectRequests.repeat`."""
    length = min(index_size(spec.chunks_per_shard), size)
    tail = folder.read_range_once(spec.shard_path(shard), size - length, length)
    return ShardStream(tail, spec, shard, size)
