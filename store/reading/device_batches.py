"""Batches on a device: a thread fills pinned memory with what is stored, and rows are made of it there.

Over the bus go the stored numbers with their norms, means and scales, not float32. The device widens and
normalizes them with the operations that the CPU's reader uses, so the rows are the same, bit for bit.

    pinned slot:  rows [n, D] as stored | norm [n] | mean [n] | scale [n]     each from a multiple of 16 bytes
"""

import atexit
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from ...common.transfers import Slot, Transfers, transfers_of
from .batches import BatchPlan, iter_batches
from .row_reader import BufferPool, RowReader
from .sharded_array import RowNumbers

LEAST_SLOTS = 3  # two batches ahead, and one that is being filled
MOST_BYTES = 1 << 30  # of all slots, unless the least number of them takes more

_ALIGNED = 16


@dataclass(frozen=True)
class Load:
    """What goes to a device for n rows of ``reader``, which become rows of type ``dtype`` there.

    A kind of normalization with a factor for each row may add up numbers of the row, in an order that the
    device chooses. Its rows are made by the CPU's reader, and go over as they are handed out.
    """

    reader: RowReader
    dtype: torch.dtype

    @property
    def _made_here(self) -> bool:
        return self.reader.normalizer.factor is None

    def num_bytes(self, n: int) -> int:
        """Bytes of n rows."""
        return sum(size for _, _, size in self._columns(n))

    def _columns(self, n: int) -> list[tuple[torch.dtype, int, int]]:
        """(type, numbers, bytes with padding) of each column."""
        dtype = self.dtype if self._made_here else self.reader.stored_dtype
        beside = [] if self._made_here else [a for a in self.reader.beside_rows if a is not None]
        sizes = [(dtype, n * self.reader.normalizer.d_model), *((torch.float32, n) for _ in beside)]
        return [(kind, count, -(-count * kind.itemsize // _ALIGNED) * _ALIGNED) for kind, count in sizes]

    def _views(self, memory: Tensor, n: int) -> list[Tensor]:
        """The columns in ``memory``, uint8, on either side: rows [n, D], then [n] each."""
        views, start = [], 0
        for kind, count, size in self._columns(n):
            views.append(memory[start : start + count * kind.itemsize].view(kind))
            start += size
        return [views[0].view(n, self.reader.normalizer.d_model), *views[1:]]

    def fill(self, memory: Tensor, numbers: RowNumbers, pool: BufferPool, threads: Executor) -> None:
        """Read rows by number into ``memory``."""
        rows, *beside = self._views(memory, len(numbers))
        if self._made_here:
            self.reader.fill(rows, numbers, pool, release=False, threads=threads)
            return
        self.reader.activations.gather_into(rows.numpy(), numbers, release=False, threads=threads)
        arrays = (array for array in self.reader.beside_rows if array is not None)
        for column, array in zip(beside, arrays, strict=True):
            array.gather_into(column.numpy(), numbers)

    def make_rows(self, memory: Tensor, n: int) -> Tensor:
        """The rows [n, D] of ``dtype``, in memory of their own on the device of ``memory``."""
        rows, *beside = self._views(memory, n)
        if self._made_here:
            return rows.clone()
        rows = self.reader.as_numbers(rows)
        if self.reader.as_stored:
            return rows.to(self.dtype, copy=True)
        rows = rows.to(torch.float32, copy=True)
        columns = iter(beside)
        self.reader.normalize(rows, *(a if a is None else next(columns) for a in self.reader.beside_rows))
        return rows.to(self.dtype)


def iter_batches_on(
    device: torch.device,
    reader: RowReader,
    plan: BatchPlan,
    dtype: torch.dtype,
    batches_ahead: int,
    around: AbstractContextManager[None],
) -> Generator[Tensor, None, None]:
    """The batches of ``plan``, of type ``dtype``, on any device; see :func:`iter_device_batches`."""
    transfers = transfers_of(device)
    if transfers is not None:
        yield from iter_device_batches(Load(reader, dtype), plan, transfers, batches_ahead, around)
        return
    pool, width = BufferPool(), reader.normalizer.d_model

    def make(numbers: RowNumbers, threads: Executor) -> Tensor:
        batch = pool.take(len(numbers), width, dtype)
        reader.fill(batch, numbers, pool, release=False, threads=threads)
        return batch.to(device)

    with around:
        yield from iter_batches(reader.activations, plan, make)


def iter_device_batches(
    load: Load,
    plan: BatchPlan,
    transfers: Transfers,
    batches_ahead: int,
    around: AbstractContextManager[None],
) -> Generator[Tensor, None, None]:
    """The batches of ``plan`` on the device of ``transfers``. The iterator's thread ends when it is closed.

    An error of reading is raised after the batches before it.

    Args:
        load: how rows become batches.
        plan: which rows.
        transfers: bring them there.
        batches_ahead: how many batches may wait on the device, within :data:`MOST_BYTES`; at least two do.
        around: is entered by the thread that reads.
    """
    slot_bytes = load.num_bytes(plan.piece_rows)
    count = max(LEAST_SLOTS, min(batches_ahead + 1, MOST_BYTES // slot_bytes))
    feed = _Feed([Slot(transfers, slot_bytes) for _ in range(count)])
    pool = BufferPool()

    def make(numbers: RowNumbers, threads: Executor) -> tuple[Slot, int]:
        slot = feed.take_slot()
        load.fill(slot.pinned, numbers, pool, threads)
        slot.send(load.num_bytes(len(numbers)))
        return slot, len(numbers)

    def read() -> Generator[tuple[Slot, int], None, None]:
        with around:
            yield from iter_batches(load.reader.activations, plan, make)

    with closing(feed):
        feed.start(read)
        while (sent := feed.next_sent()) is not None:
            slot, n = sent
            slot.wait()  # here and not on the device alone, so that the caller can measure it
            rows = load.make_rows(slot.there, n)
            feed.give_back(slot)
            yield rows


class _Closed(Exception):  # noqa: N818 - not an error: it ends the thread
    """The batches are no longer wanted."""


class _Feed:
    """Slots that a thread fills and sends, and the caller gives back."""

    def __init__(self, slots: list[Slot]) -> None:
        self._slots = slots
        self._free: SimpleQueue[Slot | None] = SimpleQueue()  # None wakes the thread, to end
        self._sent: SimpleQueue[tuple[Slot, int] | BaseException | None] = SimpleQueue()  # None: the end
        self._closed = False
        self._thread: threading.Thread | None = None
        for slot in slots:
            self._free.put(slot)

    def start(self, read: Callable[[], Generator[tuple[Slot, int], None, None]]) -> None:
        """Let a thread send what ``read()`` yields."""

        def run() -> None:
            end: BaseException | None = None
            try:
                with closing(read()) as slots:
                    for sent in slots:
                        self._sent.put(sent)
            except _Closed:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                end = error
            self._sent.put(end)

        # An iterator that nobody closed must not keep Python from ending, nor read while it ends.
        self._thread = threading.Thread(target=run, name="saecache-feed", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def take_slot(self) -> Slot:
        """A slot that may be filled. Called by the thread."""
        slot = self._free.get()
        if slot is None or self._closed:
            raise _Closed
        return slot

    def next_sent(self) -> tuple[Slot, int] | None:
        """The next slot and its rows, None at the end; raises the error that ended reading."""
        sent = self._sent.get()
        if isinstance(sent, BaseException):
            raise sent
        return sent

    def give_back(self, slot: Slot) -> None:
        """The work that reads the slot was given to the device."""
        slot.used()
        self._free.put(slot)

    def close(self) -> None:
        """End the thread, and wait for it and for the copies that are under way."""
        self._closed = True
        self._free.put(None)
        if self._thread not in (None, threading.current_thread()):  # which may collect a forgotten iterator
            self._thread.join()
        for slot in self._slots:
            slot.wait()
        atexit.unregister(self.close)
