"""Sequences -> rows: the truncated forward, in blocks of one fixed shape, and how many make a step.

Matrix products on a CPU round differently for different numbers of rows (measured: for fewer than about 8,
and for the remainder of a division by 4), so the model always runs on blocks of the same number of
sequences, numbered from the beginning of the stream. They also round differently for different numbers of
threads (measured: bfloat16 with AMX), so each block is computed by one thread, and several blocks at a time.
That makes the rows independent of the batch size, of the number of threads and of where a harvest was
interrupted. On GPUs the block is the batch: larger ones pay there. Token ids go there, and rows come back,
while the GPU computes.

Where each document has a sequence of its own, a block is as long as its longest sequence: the text decides
its shape too, and nothing else does.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Barrier
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...common.transfers import Event, Slot, Transfers, transfers_of
from ...store.layout import PADDING_ID
from ..text.packing import Cursor, Role, Sequences
from .language_model import LanguageModel

# Larger blocks are no faster on a CPU, and cache misses make very large ones slower.
CPU_BLOCK_TOKENS = 512
CPU_BATCH_TOKENS = 4096
LENGTH_STEP = 32  # of a block that is cut: few shapes, whose products have no remainders
# Tokens of a step on a GPU: where the search for its size begins, and where it ends.
_FIRST_TOKENS, _MOST_TOKENS = 1 << 12, 1 << 18
_WORTHWHILE_GAIN = 1.05


def block_sequences(device: torch.device, context: int, batch_size: int) -> int:
    """Sequences of one forward."""
    return cpu_block(context) if device.type == "cpu" else batch_size


def cpu_block(context: int) -> int:
    """Sequences of one forward on a CPU: about :data:`CPU_BLOCK_TOKENS` tokens."""
    return max(1, CPU_BLOCK_TOKENS // context)


def whole_blocks(batch_size: int, block: int) -> int:
    """``batch_size`` rounded up to whole blocks, so that batches begin where blocks do."""
    return -(-batch_size // block) * block


def step_sequences(device: torch.device, context: int, batch_size: int) -> int:
    """Sequences of one step: ``batch_size`` in whole blocks, on a CPU at least one block for each thread."""
    block = block_sequences(device, context, batch_size)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return max(whole_blocks(batch_size, block), threads * block)


class ActivationReader:
    """Runs the model on sequences and reads the rows of chosen positions at every hook.

    Args:
        block: sequences of one forward.
        cut_padding: a forward has only the positions that its longest sequence needs, in steps of
            :data:`LENGTH_STEP`.
    """

    def __init__(
        self, model: LanguageModel, hooks: Iterable[str], block: int, *, cut_padding: bool = False
    ) -> None:
        self._model = model
        self._cut_padding = cut_padding
        self._outputs = model.outputs(hooks)
        self._block = block
        devices = {output.device for output in self._outputs.values()}
        found = ((device, transfers_of(device)) for device in devices)
        self._transfers = {device: transfers for device, transfers in found if transfers is not None}
        sending = transfers_of(model.device)
        self._ids = None if sending is None else _SentBlocks(sending)
        self._pool = _single_threads() if model.device.type == "cpu" and sending is None else None

    def rows(self, sequences: Sequences, keep: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
        """Rows [keep.sum(), D] of each hook, in C order of ``keep`` [n, context], on the hook's device.

        A GPU may still be computing them: see :meth:`beside`. ``sequences`` begin with a block; when the last
        block is not full, the model runs on filled-up rows.

        Raises:
            UsageError: a token id that the model does not embed.
        """
        if sequences.ids.max() >= self._model.vocabulary:
            raise UsageError(
                f"the tokenizer gave token id {sequences.ids.max()}, but {self._model.name} embeds only "
                f"{self._model.vocabulary} tokens: they do not belong together"
            )
        counts = np.add.reduceat(keep.sum(axis=1), range(0, len(keep), self._block))
        ends = np.cumsum(counts)
        rows = {
            hook: torch.empty(int(ends[-1]), output.width, dtype=output.dtype, device=output.device)
            for hook, output in self._outputs.items()
        }

        def read_block(number: int) -> None:
            first, last = number * self._block, (number + 1) * self._block
            length = self._length(sequences.ids[first:last])
            ids = _filled(sequences.ids[first:last, :length], self._block)
            chosen = np.flatnonzero(keep[first:last, :length])
            place = slice(int(ends[number] - counts[number]), int(ends[number]))
            target = {hook: x[place] for hook, x in rows.items()}
            if self._ids is None:
                self._read_block(ids, torch.from_numpy(chosen).to(self._model.device), target)
            else:
                with self._ids.sent(ids, chosen) as (ids_there, chosen_there):
                    self._read_block(ids_there, chosen_there, target)

        for _ in (map if self._pool is None else self._pool.map)(read_block, np.flatnonzero(counts).tolist()):
            pass
        return rows

    def _length(self, ids: NDArray[np.int32]) -> int:
        """Positions of the forward of a block of ``ids`` [n, context]."""
        context = int(ids.shape[1])
        if not self._cut_padding:
            return context
        longest = int((ids != PADDING_ID).sum(axis=1).max())
        return min(context, -(-longest // LENGTH_STEP) * LENGTH_STEP)

    def beside(self) -> AbstractContextManager[None]:
        """The place to use the rows that the last call of :meth:`rows` gave, from any thread.

        Within it, the work of the thread is done beside later calls of :meth:`rows`, and after that one.
        """
        return _beside([(transfers, transfers.event()) for transfers in self._transfers.values()])

    def _read_block(
        self, ids: NDArray[np.int32] | torch.Tensor, chosen: torch.Tensor, target: dict[str, torch.Tensor]
    ) -> None:
        there = {chosen.device: chosen}

        def receive(hook: str, x: torch.Tensor) -> None:
            if x.device not in there:
                there[x.device] = chosen.to(x.device)
            torch.index_select(x.reshape(-1, x.shape[-1]), 0, there[x.device], out=target[hook])

        self._model.read(ids, target, receive)


@contextmanager
def _beside(done: list[tuple[Transfers, Event]]) -> Iterator[None]:
    with ExitStack() as stack:
        for transfers, event in done:
            stack.enter_context(transfers.beside(event))
        yield


class _SentBlocks:
    """Token ids and chosen positions on their way to a device, while it works on the block before."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._slots: list[Slot] = []  # the next one is the first

    @contextmanager
    def sent(
        self, ids: NDArray[np.int32], chosen: NDArray[np.int64]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``ids`` [n, T] and ``chosen`` [m] on the device; they are overwritten after the next block."""
        places = 8 * ids.size  # chosen are at most as many: this is where the ids begin
        if not self._slots or self._slots[0].num_bytes < places + ids.nbytes:
            for slot in self._slots:
                slot.wait()
            self._slots = [Slot(self._transfers, places + ids.nbytes) for _ in range(2)]
        slot = self._slots.pop(0)
        self._slots.append(slot)
        slot.wait()  # the pinned side is free once the copy before the last is done
        slot.pinned[: chosen.nbytes].view(torch.int64).numpy()[:] = chosen
        slot.pinned[places : places + ids.nbytes].view(torch.int32).numpy()[:] = ids.reshape(-1)
        slot.send(places + ids.nbytes)
        slot.follow()
        yield (
            slot.there[places : places + ids.nbytes].view(torch.int32).view(ids.shape),
            slot.there[: chosen.nbytes].view(torch.int64),
        )
        slot.used()


def _filled(ids: NDArray[np.int32], block: int) -> NDArray[np.int32]:
    if len(ids) == block:
        return ids
    return np.concatenate([ids, np.full((block - len(ids), ids.shape[1]), PADDING_ID, dtype=ids.dtype)])


def _single_threads() -> ThreadPoolExecutor | None:
    """As many threads as torch uses for one operation, each of which computes alone; None for one thread."""
    threads = torch.get_num_threads()
    if threads == 1:
        return None
    all_there = Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # else torch would take its default in this thread's first operation
        torch.set_num_threads(1)  # of this thread
        all_there.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="harvest-model")
    for _ in range(threads):
        pool.submit(begin)
    all_there.wait()
    torch.set_num_threads(threads)  # what threads that start from now on begin with
    return pool


def choose_batch_size(model: LanguageModel, hooks: list[str], context: int) -> int:
    """Sequences per step.

    On a CPU the forward has a fixed shape, so it only sets how often results are handed on, and that every
    thread has the same number of blocks. Elsewhere the size is doubled while that brings more tokens per
    second and fits the memory.
    """
    if model.device.type == "cpu":
        of_all_threads = torch.get_num_threads() * cpu_block(context)
        return whole_blocks(max(1, CPU_BATCH_TOKENS // context, of_all_threads), of_all_threads)

    def seconds(batch_size: int) -> float:
        return _time_step(model, hooks, context, batch_size)

    return search_batch_size(seconds, max(1, _FIRST_TOKENS // context), max(1, _MOST_TOKENS // context))


def search_batch_size(seconds: Callable[[int], float], smallest: int, largest: int) -> int:
    """The size at which doubling stops paying: ``seconds(n)`` is the time of a step of n, or it runs out of
    memory.

    The size before the one that did not fit is not taken either: real steps need some room that the trial
    does not.
    """
    best, best_rate = smallest, 0.0
    size = smallest
    while size <= largest:
        try:
            rate = size / seconds(size)
        except torch.OutOfMemoryError:
            if best_rate == 0 and size > 1:
                return search_batch_size(seconds, max(1, size // 2), max(1, size // 2))
            return max(1, best // 2)
        if rate < best_rate * _WORTHWHILE_GAIN:
            return best
        best, best_rate = size, rate
        size *= 2
    return best


def _time_step(model: LanguageModel, hooks: list[str], context: int, batch_size: int) -> float:
    shape = (batch_size, context)
    ids = np.zeros(shape, dtype=np.int32)
    roles = np.full(shape, Role.TEXT, dtype=np.uint8)
    sequences = Sequences(ids, ids, roles, [Cursor()] * batch_size)
    reader = ActivationReader(model, hooks, batch_size)
    times = []
    for _ in range(3):
        started = perf_counter()
        rows = reader.rows(sequences, np.ones(shape, dtype=np.bool_))
        for x in rows.values():
            x[-1:].cpu()  # waits for the device
        times.append(perf_counter() - started)
    return min(times)
