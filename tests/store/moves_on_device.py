"""On a real GPU: batches and records against the CPU's bytes, and how fast they move. Prints one JSON.

Needs torch, triton and numpy, and this repository around this file; no pytest, no network. With all packages
of saecache it also reads a cache and runs the built-in model's harvest on the GPU, and compares both with the
CPU. ``--quick`` leaves that out.
"""

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "train" / "backends" / "triton"))
import on_device as shared

DEVICE = "cuda"
WIDTHS = (768, 160, 100, 2048)
ROWS, TIMED_ROWS = 4096, 65_536


def halved_sum(x: Any) -> Any:
    """Row sums [n] of float32 [n, D] in the order of the encoder: 64 lanes, then halves."""
    n, width = x.shape
    padded = np.zeros((n, -(-width // 64) * 64), np.float32)
    padded[:, :width] = x
    lanes = np.zeros((n, 64), np.float32)
    for block in padded.reshape(n, -1, 64).transpose(1, 0, 2):
        lanes = lanes + block
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def encoded(x: Any, stored: str, unit: bool) -> tuple[Any, Any, Any]:
    """Words, norm and mean of rows float32 [n, D], by NumPy."""
    with np.errstate(all="ignore"):
        mean = halved_sum(x) / np.float32(x.shape[1])
        centered = x - mean[:, None]
        norm = np.sqrt(halved_sum(centered * centered))
        norm[norm < np.finfo(np.float32).tiny] = 0
        inverse = np.where(norm > 0, np.float32(1) / norm, np.float32(0)).astype(np.float32)
        rows = (centered * inverse[:, None] if unit else x).astype(stored)
    return rows, norm, mean


def check_encoder(
    width: int, stored: str, unit: bool, dtype: torch.dtype, rows: int = ROWS
) -> dict[str, Any]:
    from saecache.store.encoding.device import _test_rows
    from saecache.store.encoding.records import RecordLayout
    from saecache.store.encoding.triton_encode import encode_on_device

    random = torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    x = torch.cat([_test_rows(width), random * 3 + 1]).to(dtype)
    layout = RecordLayout(width, stored)
    records = torch.empty(len(x), layout.record_bytes, dtype=torch.uint8, device=DEVICE)
    bad = torch.empty(len(x), dtype=torch.int8, device=DEVICE)
    encode_on_device(x.to(DEVICE), records, bad, layout, unit)
    got, wanted = records.cpu().numpy(), encoded(x.float().numpy(), stored, unit)
    finite = np.isfinite(wanted[0]).all(1) & np.isfinite(wanted[1]) & np.isfinite(wanted[2])
    words = np.ascontiguousarray(got[:, : layout.row_bytes]).view(stored)
    return {
        "refused": bool((bad.cpu().numpy() == 0).tolist() == finite.tolist()),
        "words": bool((words.view(np.uint8) == wanted[0].view(np.uint8))[finite].all()),
        "norms": bool(np.array_equal(layout.norm(got)[finite], wanted[1][finite])),
        "means": bool(np.array_equal(layout.mean(got)[finite], wanted[2][finite])),
    }


def check_arithmetic(rows: int = ROWS) -> dict[str, bool]:
    """The operations that turn stored rows into normalized ones, on both sides."""
    random = torch.Generator().manual_seed(1)
    rows_nD = torch.randn(rows, 768, generator=random).half()
    norm = torch.exp2(torch.randint(-140, 100, (rows, 1), generator=random).float())
    norm[::7], mean = 0, torch.randn(rows, 1, generator=random)

    def both(x: Tensor, norm: Tensor, mean: Tensor) -> list[Tensor]:
        wide = x.float()
        inverse = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
        return [
            wide * norm + mean,
            (wide * norm).add_(mean),
            (wide - mean).mul_(inverse),
            wide * 0.0360843918,
        ]

    here = both(rows_nD, norm, mean)
    there = both(*(t.to(DEVICE) for t in (rows_nD, norm, mean)))
    names = ("raw", "raw in place", "unit", "factor")
    return {
        name: torch.equal(a.view(torch.int32), b.cpu().view(torch.int32))
        for name, a, b in zip(names, here, there, strict=True)
    }


def check_slots(num_bytes: int = 32 << 20, loads: int = 40) -> dict[str, bool]:
    """Loads through two slots, each of them read on the device while the next one comes over."""
    from saecache.common.transfers import Slot, transfers_of

    transfers = transfers_of(torch.device(DEVICE))
    assert transfers is not None
    slots = [Slot(transfers, num_bytes) for _ in range(2)]
    sums = []
    for number in range(loads):
        slot = slots[number % 2]
        slot.wait()
        slot.pinned.fill_(number + 1)
        slot.send(num_bytes)
        slot.follow()
        sums.append(slot.there.long().sum())
        slot.used()
    sent = all(int(total) == (number + 1) * num_bytes for number, total in enumerate(sums))
    fetched = True
    for number in range(loads):
        slot = slots[number % 2]
        slot.there.fill_(number + 3)
        slot.fetch(num_bytes)
        slot.wait()
        fetched = fetched and bool((slot.pinned == number + 3).all())
    return {"sent": sent, "fetched": fetched}


def time_moves(num_bytes: int = 32 << 20) -> dict[str, float]:
    """Milliseconds of a slot's copies, and of a matrix product alone and beside copies."""
    from saecache.common.transfers import Slot, transfers_of

    transfers = transfers_of(torch.device(DEVICE))
    assert transfers is not None
    slot, a = Slot(transfers, num_bytes), torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)

    def send() -> None:
        slot.send(num_bytes)
        slot.follow()

    def fetch() -> None:
        slot.fetch(num_bytes)
        slot.follow()

    def product_beside_copies() -> None:
        slot.send(num_bytes)
        a @ a
        slot.follow()

    ways = {
        "send": send,
        "fetch": fetch,
        "product": lambda: a @ a,
        "product beside a copy": product_beside_copies,
    }
    return {name: shared.milliseconds(way) for name, way in ways.items()}


def time_encoder(width: int = 768) -> dict[str, float]:
    from saecache.store.encoding.records import RecordLayout
    from saecache.store.encoding.triton_encode import encode_on_device

    layout = RecordLayout(width, "float16")
    x = torch.randn(TIMED_ROWS, width, device=DEVICE, dtype=torch.bfloat16)
    records = torch.empty(TIMED_ROWS, layout.record_bytes, dtype=torch.uint8, device=DEVICE)
    bad = torch.empty(TIMED_ROWS, dtype=torch.int8, device=DEVICE)
    ms = shared.milliseconds(lambda: encode_on_device(x, records, bad, layout, True))
    return {"milliseconds": ms, "million rows/s": round(TIMED_ROWS / ms / 1000, 1)}


def check_cache(folder: Path) -> dict[str, bool]:
    """Every normalization of every encoding, of stored order and of a later epoch."""
    from saecache.store import CacheWriter, StorageConfig, open_cache
    from saecache.store.normalization import KINDS

    x = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float32) * 3 + 1
    found = {}
    for dtype in ("float16", "bfloat16", "int8", "float32"):
        for start in ("unit", "none"):
            path = folder / f"{dtype}-{start}"
            storage = StorageConfig(dtype=dtype, normalization=start)
            with CacheWriter(path, hooks={"h": 256}, identity={}, storage=storage) as writer:
                writer.write_rows({"h": torch.from_numpy(x).to(DEVICE)})
            cache = open_cache(path)
            for kind in KINDS:
                for epoch in (0, 1):
                    ways = (
                        cache.batches("h", 3000, epoch=epoch, normalization=kind, device=d)
                        for d in ("cpu", DEVICE)
                    )
                    same = all(torch.equal(a, b.cpu()) for a, b in zip(*ways, strict=True))
                    found[f"{dtype} {start} as {kind}, epoch {epoch}"] = same
    return found


def check_harvest(folder: Path) -> dict[str, Any]:
    """The same harvest on the GPU with either encoder gives the same shards; its conditions are reported."""
    from saecache.harvest import HarvestConfig
    from saecache.harvest.runner import run
    from saecache.store import open_cache
    from saecache.store.encoding import device

    settings = {
        "model": {"name": "builtin:demo"}, "text": {"kind": "builtin", "name": "stdlib"},
        "tokens": {"context": 128}, "hooks": ["resid_post.1"], "num_tokens": 200_000, "device": DEVICE,
        "batch_size": 64,
    }  # fmt: skip
    config, sums, facts = HarvestConfig.model_validate(settings), [], {}
    for name in ("gpu", "cpu"):
        if name == "cpu":
            device._has_kernel = lambda _device: False  # type: ignore[assignment]
        cache = open_cache(Path(run(config, folder / name).path))
        sums.append({file.path: file.sha256 for file in cache.manifest.files})
        facts[name] = {key: cache.provenance[key] for key in ("conditions", "tokens_per_second")}
    return {"same shards": sums[0] == sums[1], **facts}


def make_importable() -> None:
    """As the script for the kernels of training does it; pydantic may be missing too."""
    shared.make_importable()
    if find_spec("pydantic") is None:
        layout: Any = ModuleType("saecache.store.layout")
        layout.ZARR_DTYPE = {"float16": "float16", "bfloat16": "uint16", "float32": "float32", "int8": "int8"}
        sys.modules["saecache.store.layout"] = layout


def main() -> None:
    make_importable()
    report = shared.report
    report["device"] = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    checks = report["checks"]
    shared.attempt("arithmetic", check_arithmetic, checks)
    shared.attempt("slots", check_slots, checks)
    for width in WIDTHS:
        for stored in ("float16", "float32"):
            for unit in (True, False):
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    name = f"encoder {width} {stored} {'unit' if unit else 'raw'} {dtype}"
                    shared.attempt(
                        name, lambda w=width, s=stored, u=unit, d=dtype: check_encoder(w, s, u, d), checks
                    )
    shared.attempt("moves", time_moves, report["milliseconds"])
    shared.attempt("encoder", time_encoder, report["milliseconds"])
    packages = ("numba", "zarr", "pydantic", "numcodecs", "transformers")
    if "--quick" not in sys.argv and all(find_spec(name) is not None for name in packages):
        with tempfile.TemporaryDirectory() as folder:
            shared.attempt("cache", lambda: check_cache(Path(folder)), checks)
            shared.attempt("harvest", lambda: check_harvest(Path(folder) / "harvest"), checks)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
