"""The kernel that encodes rows on a GPU, in Triton's interpreter: the bytes of the CPU's encoder."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common import devices
from saecache.common.transfers import TRANSFERS
from saecache.store.encoding import device
from saecache.store.encoding.device import DeviceEncoder, _test_rows, encodes_rows
from saecache.store.encoding.encode import encode_rows
from saecache.store.encoding.records import RecordLayout

from ...pretend_transfers import pretend

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton cannot be installed on this platform"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of numpy, in the interpreter
]
CPU = torch.device("cpu")
STORED = ("float16", "bfloat16", "float32", "int8")
MODELS = (torch.float32, torch.bfloat16, torch.float16)
WAYS = [(stored, unit) for stored in STORED for unit in (True, False)]
CASES = [
    *((100, stored, dtype, unit) for stored, unit in WAYS for dtype in MODELS),
    *((width, stored, torch.bfloat16, unit) for width in (1, 63, 160) for stored, unit in WAYS),
    *((768, stored, torch.float32, True) for stored in STORED),
    (2048, "float16", torch.bfloat16, True),
]  # fmt: skip


def encode_there(
    x: torch.Tensor, layout: RecordLayout, unit: bool
) -> tuple[np.ndarray[Any, Any], list[bool]]:
    from saecache.store.encoding.triton_encode import encode_on_device

    records = torch.full((len(x), layout.record_bytes), 255, dtype=torch.uint8)
    bad = torch.full((len(x),), 7, dtype=torch.int8)
    encode_on_device(x, records, bad, layout, unit)
    assert set(bad.tolist()) <= {0, 1}
    return records.numpy(), (bad != 0).tolist()


def encode_here(x: torch.Tensor, layout: RecordLayout, unit: bool) -> tuple[np.ndarray[Any, Any], list[bool]]:
    records = np.empty((len(x), layout.record_bytes), np.uint8)
    return records, encode_rows(x.float().numpy(), records, layout, unit).tolist()


@pytest.mark.parametrize(("width", "stored", "dtype", "unit"), CASES)
def test_records_are_those_of_the_cpu(width: int, stored: str, dtype: torch.dtype, unit: bool) -> None:
    """Zeros, constants, subnormals, huge and tiny norms; rows that cannot be stored are refused by both."""
    x, layout = _test_rows(width)[:90].to(dtype), RecordLayout(width, stored)
    (got, bad), (wanted, refused) = encode_there(x, layout, unit), encode_here(x, layout, unit)
    assert bad == refused and refused[10:13] == [True] * 3 and sum(refused) < 50
    assert np.array_equal(got[~np.array(refused)], wanted[~np.array(refused)])


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65])
def test_any_number_of_rows(n: int) -> None:
    x, layout = torch.randn(n, 20, generator=torch.Generator().manual_seed(n)), RecordLayout(20, "int8")
    assert np.array_equal(encode_there(x, layout, True)[0], encode_here(x, layout, True)[0])


def test_float16_is_rounded_as_on_the_cpu() -> None:
    """Around every 37th float16: the middle to the next one and its float32 neighbours, and overflow."""
    half = np.arange(0, 0x7C00, 37, dtype=np.uint16).view(np.float16).astype(np.float32)
    above = np.nextafter(half.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    middle = (half + np.where(np.isinf(above), half, above)) / 2
    values = np.concatenate([half, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, above)])
    values = np.concatenate([values, -values, np.float32([65504, 65519.996])])
    x, layout = torch.from_numpy(np.resize(values, (-(-len(values) // 64), 64))), RecordLayout(64, "float16")
    (got, bad), (wanted, refused) = encode_there(x, layout, False), encode_here(x, layout, False)
    assert not any(refused) and bad == refused and np.array_equal(got, wanted)
    for value, overflows in ((65519.996, False), (65520.0, True), (-1e30, True)):
        x[0, 3] = value
        assert encode_there(x[:1], layout, False)[1] == encode_here(x[:1], layout, False)[1] == [overflows]


def test_views_are_encoded_too() -> None:
    x, layout = torch.randn(30, 50, generator=torch.Generator().manual_seed(1)), RecordLayout(24, "float16")
    view = x[::2, 3:27]
    assert np.array_equal(encode_there(view, layout, True)[0], encode_here(view, layout, True)[0])


def test_pieces_come_in_order_with_the_rows_of_every_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = pretend(0.002)
    monkeypatch.setitem(TRANSFERS, "cpu", kind)
    monkeypatch.setattr(device, "PIECE_BYTES", 64 * (RecordLayout(24, "int8").record_bytes + 1))
    monkeypatch.setattr(device, "runs_triton", lambda _device: True)
    layouts = {"a": RecordLayout(24, "int8"), "b": RecordLayout(8, "int8")}
    random = torch.Generator().manual_seed(2)
    encoder = DeviceEncoder(layouts, unit=True)
    for n in (300, 0, 17, 300):  # the memory of the pieces is used again
        rows = {"b": torch.randn(n, 8, generator=random), "a": torch.randn(n, 24, generator=random)}
        assert encoder.serves(rows)
        pieces = [
            (p.rows, [r.copy() for r in p.records], [b.copy() for b in p.bad]) for p in encoder.pieces(rows)
        ]
        assert [p[0].start for p in pieces] == list(range(0, n, 64))
        for place, hook in enumerate(layouts):
            got = np.concatenate([p[1][place] for p in pieces]) if pieces else np.empty((0,), np.uint8)
            wanted = encode_here(rows[hook], layouts[hook], True)[0]
            assert np.array_equal(got.reshape(wanted.shape), wanted)
            assert not any(p[2][place].any() for p in pieces)
    assert len(kind.made) == 2 and kind.made[0].pinned_bytes == 2 * 64 * (layouts["a"].record_bytes + 1)


def test_where_the_kernel_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = RecordLayout(24, "float16")
    assert not encodes_rows(CPU, torch.float32, layout, True)
    assert not DeviceEncoder({"a": layout}, unit=True).serves({"a": np.zeros((3, 24), np.float32)})
    monkeypatch.setattr(device, "runs_triton", lambda _device: True)
    assert encodes_rows(CPU, torch.float32, layout, True)
    assert not encodes_rows(CPU, torch.float64, layout, True)
    assert not DeviceEncoder({"a": layout}, unit=True).serves({"a": np.zeros((3, 24), np.float32)})


@pytest.mark.parametrize(
    ("capability", "triton", "hip", "has_kernel"),
    [
        ((9, 0), True, None, True),
        ((7, 5), True, None, False),
        ((9, 0), False, None, False),
        ((9, 0), True, "6", False),
    ],
)
def test_which_gpus_have_it(
    monkeypatch: pytest.MonkeyPatch, capability: Any, triton: bool, hip: str | None, has_kernel: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(devices, "find_spec", lambda _name: object() if triton else None)
    devices.runs_triton.cache_clear()
    assert devices.runs_triton(torch.device("cuda:0")) == has_kernel
    devices.runs_triton.cache_clear()
    assert not devices.runs_triton(torch.device("mps"))
