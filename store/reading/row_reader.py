"""Rows of one hook and split as one normalization, from the arrays that store them as another."""

import weakref
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..normalization import Normalizer, Start
from .sharded_array import RowNumbers, ShardedArray

_KEPT_BUFFERS = 4
_TORCH_DTYPE = {
    "float16": torch.float16,
    "float32": torch.float32,
    "uint16": torch.uint16,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class RowReader:
    """Reads stored rows [N, D] with their norm [N] and mean [N], and normalizes them."""

    activations: ShardedArray
    norm: ShardedArray
    mean: ShardedArray
    stored: Start  # what ``activations`` holds
    normalizer: Normalizer
    row_scale: ShardedArray | None = None  # [N], of int8 rows

    @property
    def _needs_norms(self) -> bool:
        return self.stored != self.normalizer.starts_from

    @property
    def as_stored(self) -> bool:
        """Whether the stored numbers are the rows, so that only their type may change."""
        return not self._needs_norms and self.normalizer.factor == 1 and self.row_scale is None

    @property
    def beside_rows(self) -> tuple[ShardedArray | None, ...]:
        """The arrays [N] that normalizing reads: norm, mean and scale; None for each that it does not."""
        norms = (self.norm, self.mean) if self._needs_norms else (None, None)
        return *norms, self.row_scale

    @property
    def arrays(self) -> list[ShardedArray]:
        """The arrays that are read; all are cut alike."""
        return [self.activations, *(array for array in self.beside_rows if array is not None)]

    def fill(
        self,
        out: torch.Tensor,
        numbers: RowNumbers,
        pool: "BufferPool",
        *,
        release: bool,
        threads: Executor | None = None,
    ) -> None:
        """Rows by number into ``out`` [n, D], of any floating type; normalizing is done in float32.

        Args:
            out: overwritten.
            numbers: int64 [n] or a range of step 1, all of existing rows.
            pool: for memory in between.
            release: let go of each chunk's memory when it was read.
            threads: share the reading of rows that are not consecutive.
        """
        rows = out
        if not self.as_stored and out.dtype != torch.float32:
            rows = pool.take(out.shape[0], out.shape[1], torch.float32)
        self._read(rows, numbers, pool, release, threads)
        if not self.as_stored:
            arrays = self.beside_rows
            self.normalize(
                rows, *(None if a is None else torch.from_numpy(a.gather(numbers)) for a in arrays)
            )
        if rows is not out:
            out.copy_(rows)

    def _read(
        self,
        out: torch.Tensor,
        numbers: RowNumbers,
        pool: "BufferPool",
        release: bool,
        threads: Executor | None,
    ) -> None:
        array = self.activations
        stored_dtype = self.stored_dtype
        if isinstance(numbers, range):  # straight from the file into the batch
            for piece in array.pieces(numbers, release=release):
                out[piece.target].copy_(self.as_numbers(torch.from_numpy(piece.source)))
        elif array.dtype == np.float16 and out.dtype == torch.float32:
            array.gather_into(out.numpy(), numbers, release=release, threads=threads)
        elif out.dtype == (torch.bfloat16 if array.spec.bits_of == "bfloat16" else stored_dtype):
            array.gather_into(out.view(stored_dtype).numpy(), numbers, release=release, threads=threads)
        else:
            stored = pool.take(out.shape[0], out.shape[1], stored_dtype)
            array.gather_into(stored.numpy(), numbers, release=release, threads=threads)
            out.copy_(self.as_numbers(stored))

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type in which NumPy knows the stored numbers: bfloat16 are uint16."""
        return _TORCH_DTYPE[self.activations.dtype.name]

    def as_numbers(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.view(torch.bfloat16) if self.activations.spec.bits_of == "bfloat16" else stored

    def normalize(
        self,
        rows: torch.Tensor,
        norm: torch.Tensor | None,
        mean: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> None:
        """Turn stored rows float32 [n, D] into normalized ones, in place, on the device where they are.

        Every operation works on single numbers and rounds once, so that all devices give the same bits; only
        a kind with a factor for each row may add up rows (see :class:`..normalization.Kind`).

        Args:
            rows: overwritten.
            norm, mean, scale: float32 [n] of the same rows, from :attr:`beside_rows`.
        """
        if scale is not None:
            rows.mul_(scale[:, None])
        if norm is not None and mean is not None:
            norm, mean = norm[:, None], mean[:, None]
            if self.stored == "unit":
                rows.mul_(norm).add_(mean)
            else:
                rows.sub_(mean).mul_(torch.where(norm > 0, 1 / norm, torch.zeros_like(norm)))
        self.normalizer.finish(rows)


class BufferPool:
    """Hands out tensors; when the last tensor over a piece of memory is gone, the memory is used again.

    Fresh memory fills several times slower than memory that was used before.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor [rows, width]."""
        num_bytes = rows * width * dtype.itemsize
        if not num_bytes:
            return torch.empty(rows, width, dtype=dtype)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        if len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
        # The tensor's storage holds this view, the view's end gives the memory back.
        view = memory[:num_bytes]
        weakref.finalize(view, self._give_back, memory).atexit = False
        return torch.from_numpy(view).view(dtype).view(rows, width)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        if len(self._free) < _KEPT_BUFFERS:
            self._free.append(memory)
