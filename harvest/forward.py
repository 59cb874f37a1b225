"""Sequences -> rows: the truncated forward, in blocks of one fixed shape.

Matrix products on a CPU round differently for different numbers of rows (measured: for fewer than about 8,
and for the remainder of a division by 4), so the model always runs on blocks of the same number of
sequences, numbered from the beginning of the stream. That makes the rows independent of the batch size and
of where a harvest was interrupted. On GPUs the block is the batch: larger ones pay there.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.errors import UsageError
from .model import LanguageModel
from .packing import Sequences

# Larger blocks are no faster on a CPU, and cache misses make very large ones slower.
CPU_BLOCK_TOKENS = 512
CPU_BATCH_TOKENS = 4096


def block_sequences(device: torch.device, context: int, batch_size: int) -> int:
    """Sequences of one forward."""
    return cpu_block(context) if device.type == "cpu" else batch_size


def cpu_block(context: int) -> int:
    """Sequences of one forward on a CPU: about :data:`CPU_BLOCK_TOKENS` tokens."""
    return max(1, CPU_BLOCK_TOKENS // context)


def whole_blocks(batch_size: int, block: int) -> int:
    """``batch_size`` rounded up to whole blocks, so that batches begin where blocks do."""
    return -(-batch_size // block) * block


class RowReader:
    """Reads the rows of chosen positions at every hook."""

    def __init__(self, model: LanguageModel, hooks: Iterable[str], block: int) -> None:
        self._model = model
        self._widths = model.widths(hooks)
        self._block = block

    def rows(self, sequences: Sequences, keep: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
        """Rows [keep.sum(), D] of each hook, in C order of ``keep`` [n, context], on the model's device.

        ``sequences`` begin with a block; when the last block is not full, the model runs on filled-up rows.

        Raises:
            UsageError: a token id that the model does not embed.
        """
        if sequences.ids.max() >= self._model.vocabulary:
            raise UsageError(
                f"the tokenizer gave token id {sequences.ids.max()}, but {self._model.name} embeds only "
                f"{self._model.vocabulary} tokens: they do not belong together"
            )
        device = self._model.device
        counts = np.add.reduceat(keep.sum(axis=1), range(0, len(keep), self._block))
        ends = np.cumsum(counts)
        rows = {
            hook: torch.empty(int(ends[-1]), width, dtype=self._model.dtype, device=device)
            for hook, width in self._widths.items()
        }
        for number, (end, count) in enumerate(zip(ends, counts, strict=True)):
            first = number * self._block
            if count:
                ids = _filled(sequences.ids[first : first + self._block], self._block)
                chosen = torch.from_numpy(np.flatnonzero(keep[first : first + self._block])).to(device)
                self._read_block(ids, chosen, {hook: x[end - count : end] for hook, x in rows.items()})
        return rows

    def _read_block(
        self, ids: NDArray[np.int32], chosen: torch.Tensor, target: dict[str, torch.Tensor]
    ) -> None:
        def receive(hook: str, x: torch.Tensor) -> None:
            torch.index_select(x.reshape(-1, x.shape[-1]), 0, chosen, out=target[hook])

        self._model.read(ids, target, receive)


def _filled(ids: NDArray[np.int32], block: int) -> NDArray[np.int32]:
    if len(ids) == block:
        return ids
    return np.concatenate([ids, np.full((block - len(ids), ids.shape[1]), -1, dtype=ids.dtype)])
