"""Chunks whose pages stay mapped after they were read, because mapping them again takes a third of a read.

A page of a file that is mapped belongs to the system's file cache as before: the system still takes it away
where memory is short, and only then must it be read again. What stays mapped is bounded nonetheless, so that
a process does not look as if it had taken all memory.
"""

import threading
import weakref
from collections import OrderedDict
from functools import cached_property
from typing import Protocol

from ...common.memory import available_main_memory

_SHARE = 4  # of the memory that is available at first use, one part in so many
_UNKNOWN_BYTES = 1 << 30  # where the system does not say what is available


class Mapping(Protocol):
    """A file that is mapped into memory, and consists of chunks."""

    @property
    def num_chunks(self) -> int:
        """How many chunks it may have."""

    def chunk_bytes(self, slot: int) -> int:
        """The size of a chunk."""

    def unmap(self, slot: int) -> None:
        """Let go of the pages of a chunk."""


class KeptChunks:
    """The chunks of this process that stay mapped. Safe to use from several threads.

    It keeps no mapping alive: when one ends, its chunks are forgotten.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        """``limit_bytes`` is the most that stays mapped; None: a share of the available memory."""
        self._given = limit_bytes
        self._lock = threading.RLock()  # a mapping may end while this thread has it
        self._kept: OrderedDict[tuple[int, int], tuple[weakref.ref[Mapping], int]] = OrderedDict()
        self._known: set[int] = set()
        self._total = 0

    @cached_property
    def limit_bytes(self) -> int:
        """The most that stays mapped."""
        if self._given is not None:
            return self._given
        available = available_main_memory()
        return _UNKNOWN_BYTES if available is None else available // _SHARE

    def has(self, mapping: Mapping, slot: int) -> bool:
        """Whether a chunk is still mapped since it was read last."""
        return (id(mapping), slot) in self._kept

    def keep(self, mapping: Mapping, slot: int) -> None:
        """A chunk was read: let it stay mapped, and unmap those that were read longest ago if need be."""
        with self._lock:
            number = id(mapping)
            if number not in self._known:
                self._known.add(number)
                weakref.finalize(mapping, self._forget, number, mapping.num_chunks).atexit = False
            self._drop((number, slot))
            size = mapping.chunk_bytes(slot)
            self._kept[number, slot] = weakref.ref(mapping), size
            self._total += size
            oldest = []
            while self._total > self.limit_bytes:
                key = next(iter(self._kept))
                oldest.append((self._kept[key][0], key[1]))
                self._drop(key)
        for of, old in oldest:
            if (still := of()) is not None:
                still.unmap(old)

    def _drop(self, key: tuple[int, int]) -> None:
        found = self._kept.pop(key, None)
        self._total -= 0 if found is None else found[1]

    def _forget(self, number: int, num_chunks: int) -> None:
        with self._lock:
            self._known.discard(number)
            for slot in range(num_chunks):
                self._drop((number, slot))


KEPT = KeptChunks()
