"""Rows that lie on a GPU become records there, and come into main memory while the GPU computes on.

Where Triton does not serve, or where the GPU's bytes were not those of :mod:`.encode` for the rows of a test,
the CPU encodes; the cache is the same.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.devices import runs_triton
from ...common.transfers import Slot, transfers_of
from .encode import encode_rows
from .records import RecordLayout

PIECE_BYTES = 32 << 20  # of the records of all hooks that come over together
_PIECES_AT_ONCE = 2  # one is read here, the next one comes over
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TESTED_ROWS = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedPiece:
    """Consecutive rows of every hook. The memory is used again for the piece after the next."""

    rows: slice  # of those that were given
    records: list[NDArray[np.uint8]]  # [n, record_bytes] of each hook
    bad: list[NDArray[np.bool_]]  # [n] of each hook: rows that cannot be stored


class DeviceEncoder:
    """Encodes the rows of all hooks where they are, and brings the records here piece by piece."""

    def __init__(self, layouts: Mapping[str, RecordLayout], *, unit: bool) -> None:
        self._layouts = dict(layouts)
        self._unit = unit
        row_bytes = sum(layout.record_bytes + 1 for layout in layouts.values())
        self._piece_rows = max(64, PIECE_BYTES // row_bytes)
        self._slots: dict[tuple[str, torch.device], list[Slot]] = {}

    def serves(self, activations: Mapping[str, Any]) -> bool:
        """Whether every hook's rows are on a device that encodes them, to the same bytes as the CPU."""
        return all(
            isinstance(x, Tensor) and encodes_rows(x.device, x.dtype, self._layouts[hook], self._unit)
            for hook, x in activations.items()
        )

    def pieces(self, activations: Mapping[str, Tensor]) -> Iterator[EncodedPiece]:
        """The records of rows [n, D] of each hook, in order.

        The device encodes after what the current stream of this thread was given before.
        """
        count = len(next(iter(activations.values())))
        under_way: deque[tuple[slice, list[Slot]]] = deque()
        for number, start in enumerate(range(0, count, self._piece_rows)):
            rows = slice(start, min(start + self._piece_rows, count))
            under_way.append((rows, self._begin(activations, rows, number % _PIECES_AT_ONCE)))
            if len(under_way) == _PIECES_AT_ONCE:
                yield self._finish(*under_way.popleft())
        for begun in under_way:
            yield self._finish(*begun)

    def _begin(self, activations: Mapping[str, Tensor], rows: slice, which: int) -> list[Slot]:
        from .triton_encode import encode_on_device

        begun, n = [], rows.stop - rows.start
        for hook, layout in self._layouts.items():
            x, size = activations[hook], n * layout.record_bytes
            slot = self._slots_of(hook, x.device)[which]
            records, bad = slot.there[:size].view(n, -1), slot.there[size : size + n]
            encode_on_device(x[rows], records, bad.view(torch.int8), layout, self._unit)
            slot.fetch(size + n)
            begun.append(slot)
        return begun

    def _finish(self, rows: slice, slots: list[Slot]) -> EncodedPiece:
        records, bad, n = [], [], rows.stop - rows.start
        for slot, layout in zip(slots, self._layouts.values(), strict=True):
            slot.wait()
            memory, size = slot.pinned.numpy(), n * layout.record_bytes
            records.append(memory[:size].reshape(n, -1))
            bad.append(memory[size : size + n].view(np.bool_))
        return EncodedPiece(rows, records, bad)

    def _slots_of(self, hook: str, device: torch.device) -> list[Slot]:
        """Memory for the pieces of one hook, kept for the next rows."""
        if (hook, device) not in self._slots:
            transfers = transfers_of(device)
            assert transfers is not None, "the device has a kernel"
            size = self._piece_rows * (self._layouts[hook].record_bytes + 1)
            self._slots[hook, device] = [Slot(transfers, size) for _ in range(_PIECES_AT_ONCE)]
        return self._slots[hook, device]


def encodes_rows(device: torch.device, dtype: torch.dtype, layout: RecordLayout, unit: bool) -> bool:
    """Whether ``device`` encodes its rows of this type, to the same bytes as the CPU."""
    return dtype in _DTYPES and runs_triton(device) and encodes_as_here(device, dtype, layout, unit)


@cache
def encodes_as_here(device: torch.device, dtype: torch.dtype, layout: RecordLayout, unit: bool) -> bool:
    """Whether ``device`` gives the bytes of the CPU's encoder for some ordinary and some extreme rows."""
    from .triton_encode import encode_on_device

    x = _test_rows(layout.d_model).to(dtype)
    wanted = np.empty((len(x), layout.record_bytes), np.uint8)
    refused = encode_rows(x.float().numpy(), wanted, layout, unit)
    records = torch.empty(wanted.shape, dtype=torch.uint8, device=device)
    bad = torch.empty(len(x), dtype=torch.int8, device=device)
    encode_on_device(x.to(device), records, bad, layout, unit)
    got, same = records.cpu().numpy(), np.array_equal(bad.cpu().numpy() != 0, refused)
    same = same and np.array_equal(got[~refused], wanted[~refused])
    if not same:
        logger.warning(
            "%s does not encode rows %s as the CPU does: the CPU encodes them; please report this",
            device,
            layout,
        )
    return same


def _test_rows(d_model: int) -> Tensor:
    """float32 [n, D]: random rows of very different norms and means; zeros, NaN, infinity, subnormals."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(_TESTED_ROWS, d_model, generator=random)
    x *= torch.exp2(torch.randint(-30, 30, (_TESTED_ROWS, 1), generator=random).float())
    x += torch.randn(_TESTED_ROWS, 1, generator=random)
    x[0], x[1], x[2] = 0, 3.25, 1e-40 * x[2].sign()
    for row, size in enumerate((1e-30, 1e-20, 1e-7, 6e4, 1e18, 1e35, 3e38), start=3):
        x[row] *= size / x[row].abs().max()
    x[10, -1], x[11, 0], x[12, d_model // 2] = torch.nan, torch.inf, -torch.inf
    return x
