"""Shards that are written side by side, on machines with more cores than one shard at a time keeps busy.

The threads that write one shard sort, add up moments and checksums, hash, and write to the disk: each of
these is one thread's work, so that one shard at a time uses between three and four cores. A lane has all of
these threads and buffers of its own. Each lane writes every n-th shard; what is written is the same, and the
records and sums are taken in the order of the shards.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...common.cores import usable_cores
from .shard_units import NamedUnit, ShardUnits
from .unit_records import Unit, UnitRecords

CORES_OF_LANE = 3


def choose_lanes(num_shards: int, limit_bytes: int, lane_bytes: int) -> int:
    """How many shards to write at the same time.

    Args:
        num_shards: of the hook that has the most.
        limit_bytes: of the buffers of all lanes together.
        lane_bytes: that one lane needs, so that it reads each bucket of the shuffle once.
    """
    fitting = limit_bytes // max(lane_bytes, 1)
    return max(1, min(len(usable_cores()) // CORES_OF_LANE, num_shards, fitting))


class Lanes:
    """Does units of work in several lanes, each in a thread of its own; :meth:`close` ends the threads.

    Args:
        lanes: make the same units, each with its own threads and buffers.
        records: of the units that are done.
    """

    def __init__(self, lanes: Sequence[ShardUnits], records: UnitRecords) -> None:
        self._lanes, self._records = lanes, records
        self._threads = [
            ThreadPoolExecutor(1, f"saecache-lane-{number}")
            for number in range(len(lanes) - 1 and len(lanes))
        ]

    def run(self, units: Callable[[ShardUnits], Iterable[NamedUnit]]) -> Iterator[tuple[str, Any]]:
        """Do all units that have no record yet.

        Yields:
            The name of each, and what its record keeps besides its files, in the order of the units.
        """
        if not self._threads:
            for name, write in units(self._lanes[0]):
                yield name, self._records.once(name, write)
            return
        under_way: deque[tuple[str, Callable[[], Unit]]] = deque()
        for number, same in enumerate(zip(*map(units, self._lanes), strict=True)):
            lane = number % len(self._lanes)
            name, write = same[lane]
            if not self._records.has(name):
                write = self._threads[lane].submit(write).result
            under_way.append((name, write))
            if len(under_way) > len(self._lanes):
                name, write = under_way.popleft()
                yield name, self._records.once(name, write)
        for name, write in under_way:
            yield name, self._records.once(name, write)

    def close(self) -> None:
        """Wait for the units that are being done; those that were not begun are left."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        for lane in self._lanes:
            lane.close()
