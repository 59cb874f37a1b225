"""How many sequences a step takes, when that is left to us."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from .forward import CPU_BATCH_TOKENS, RowReader, cpu_block, whole_blocks
from .model import LanguageModel
from .packing import Cursor, Role, Sequences

_FIRST_TOKENS, _MOST_TOKENS = 1 << 12, 1 << 18
_WORTHWHILE_GAIN = 1.05


def choose_batch_size(model: LanguageModel, hooks: list[str], context: int) -> int:
    """Sequences per step.

    On a CPU the forward has a fixed shape, so it only sets how often results are handed on. Elsewhere the
    size is doubled while that brings more tokens per second and fits the memory.
    """
    if model.device.type == "cpu":
        return whole_blocks(max(1, CPU_BATCH_TOKENS // context), cpu_block(context))

    def seconds(batch_size: int) -> float:
        return _time_step(model, hooks, context, batch_size)

    return search(seconds, max(1, _FIRST_TOKENS // context), max(1, _MOST_TOKENS // context))


def search(seconds: Callable[[int], float], smallest: int, largest: int) -> int:
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
                return search(seconds, max(1, size // 2), max(1, size // 2))
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
    reader = RowReader(model, hooks, batch_size)
    times = []
    for _ in range(3):
        started = perf_counter()
        rows = reader.rows(sequences, np.ones(shape, dtype=np.bool_))
        for x in rows.values():
            x.cpu()  # waits for the device, as the real step's writing does
        times.append(perf_counter() - started)
    return min(times)
