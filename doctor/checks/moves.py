"""What moves between a GPU and main memory, against the CPU's bytes: slots, encoded rows, batches."""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...common.devices import runs_triton
from ...common.transfers import Slot, transfers_of
from ...store import CacheWriter, StorageConfig, open_cache
from ...store.encoding.device import encodes_as_here
from ...store.encoding.records import RecordLayout
from ...store.normalization import KINDS
from ..notes import Notes
from .problems import same_bits

STORED = ("float16", "bfloat16", "int8", "float32")
MODEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SLOT_BYTES, LOADS = 32 << 20, 20
CACHE_ROWS, CACHE_WIDTH, BATCH_ROWS = 20_000, 256, 3000


def check_moves(notes: Notes, widths: tuple[int, ...], device: torch.device, folder: Path) -> None:
    """All of them; a temporary cache is made in ``folder``."""
    ways: dict[str, Callable[[], None]] = {
        "arithmetic of normalizing": partial(check_arithmetic, notes, device),
        "slots": partial(check_slots, notes, device, SLOT_BYTES),
    }
    if runs_triton(device):
        for width, stored, unit in product(widths, ("float16", "float32"), (True, False)):
            name = f"rows of {width} as {'unit' if unit else 'raw'} {stored}"
            ways[name] = partial(check_encoder, notes, name, RecordLayout(width, stored), unit, device)
    else:
        notes.leave_out("rows are encoded there", "the kernel does not run on this device")
    for stored in STORED:
        ways[f"batches of {stored}"] = partial(check_batches, notes, stored, device, folder)
    for name in notes.each(ways):
        with notes.attempt(name):
            ways[name]()


def check_arithmetic(notes: Notes, device: torch.device) -> None:
    """The operations that turn stored rows into normalized ones round alike on both sides."""
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(4096, 768, generator=random).half()
    norm = torch.exp2(torch.randint(-140, 100, (4096, 1), generator=random).float())
    norm[::7], mean = 0, torch.randn(4096, 1, generator=random)

    def both(x: Tensor, norm: Tensor, mean: Tensor) -> list[Tensor]:
        wide = x.float()
        inverse = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
        return [(wide * norm).add_(mean), (wide - mean).mul_(inverse), wide * 0.0360843918]

    here = both(*(t.to(device) for t in (rows, norm, mean)))
    for name, ours, theirs in zip(("raw", "unit", "factor"), here, both(rows, norm, mean), strict=True):
        notes.check(f"arithmetic of normalizing: {name}", same_bits((ours.cpu(), theirs)))


def check_slots(notes: Notes, device: torch.device, num_bytes: int) -> None:
    """Loads through two slots: each is read on the device while the next one comes over."""
    transfers = transfers_of(device)
    assert transfers is not None
    slots = [Slot(transfers, num_bytes) for _ in range(2)]
    sums = []
    for number in range(LOADS):
        slot = slots[number % 2]
        slot.wait()
        slot.pinned.fill_(number + 1)
        slot.send(num_bytes)
        slot.follow()
        sums.append(slot.there.long().sum())
        slot.used()
    wanted = [(number + 1) * num_bytes for number in range(LOADS)]
    notes.check("slots: what is sent arrives", [int(total) for total in sums] == wanted)
    fetched = True
    for number in range(LOADS):
        slot = slots[number % 2]
        slot.there.fill_(number + 3)
        slot.fetch(num_bytes)
        slot.wait()
        fetched = fetched and bool((slot.pinned == number + 3).all())
    notes.check("slots: what is fetched arrives", fetched)


def check_encoder(notes: Notes, name: str, layout: RecordLayout, unit: bool, device: torch.device) -> None:
    """Records made on the device have the bytes of those made on the CPU, and the same rows are refused."""
    for dtype in MODEL_DTYPES:
        notes.check(f"{name}, from {dtype}", encodes_as_here(device, dtype, layout, unit))


def check_batches(notes: Notes, stored: str, device: torch.device, folder: Path) -> None:
    """Every normalization of rows written on the device, in stored order and in that of a later epoch."""
    x = np.random.default_rng(0).normal(size=(CACHE_ROWS, CACHE_WIDTH)).astype(np.float32) * 3 + 1
    for start in ("unit", "none"):
        path = folder / f"{stored}-{start}"
        storage = StorageConfig(dtype=stored, normalization=start)
        with CacheWriter(path, hooks={"h": CACHE_WIDTH}, identity={}, storage=storage) as writer:
            writer.write_rows({"h": torch.from_numpy(x).to(device)})
        cache = open_cache(path)
        for kind, epoch in product(KINDS, (0, 1)):
            here, there = (
                cache.batches("h", BATCH_ROWS, epoch=epoch, normalization=kind, device=place)
                for place in (device, "cpu")
            )
            same = all(same_bits((a.cpu(), b)) for a, b in zip(here, there, strict=True))
            notes.check(f"{start} {stored} read as {kind}, epoch {epoch}", same)


def why_not(device: torch.device) -> str:
    """Why nothing of this can be checked for a device; empty if it can."""
    moves = transfers_of(device) is not None
    return "" if moves else "no second stream moves batches and rows to this device"
