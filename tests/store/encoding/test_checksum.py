"""crc32c by carry-less multiplication, and the check for finite numbers, against the plain ways."""

import os
import subprocess
import sys
from typing import Any

import crc32c as crc32c_library
import google_crc32c
import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from saecache.store import finite
from saecache.store.encoding import checksum
from saecache.store.layout import ArraySpec

SPECS = {
    "float16": ArraySpec("x", (1,), "float16", 1, 1, ("row",)),
    "bfloat16": ArraySpec("x", (1,), "uint16", 1, 1, ("row",), bits_of="bfloat16"),
    "float32": ArraySpec("x", (1,), "float32", 1, 1, ("row",)),
    "float64": ArraySpec("x", (1,), "float64", 1, 1, ("row",)),
    "int8": ArraySpec("x", (1,), "int8", 1, 1, ("row",)),
    "uint64": ArraySpec("x", (1,), "uint64", 1, 1, ("row",)),
}
WAYS = {"folded": checksum._STEP_BYTES, "library": 0}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(checksum, "_STEP_BYTES", WAYS[request.param])
    return str(request.param)


def finite_bytes(spec: ArraySpec, count: int, seed: int) -> NDArray[np.uint8]:
    """Bits at random, but of numbers that are finite."""
    size = np.dtype(spec.dtype).itemsize
    words = np.random.default_rng(seed).integers(0, 256, count * size, np.uint8).view(f"<u{size}")
    infinity = finite.infinity_bits(spec)
    if infinity is not None:
        words[(words & np.iinfo(words.dtype).max // 2) >= infinity] = 1
    return words.view(np.uint8)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", SPECS)
def test_crc_of_every_length(name: str) -> None:
    spec = SPECS[name]
    size = np.dtype(spec.dtype).itemsize
    for count in [*range(0, 1100 // size, 3), 4096 + 1, 100_003]:
        payload = finite_bytes(spec, count, count)
        assert checksum.crc32c_and_finite(payload, spec) == (google_crc32c.value(payload.tobytes()), True)
        assert checksum.crc32c(payload) == google_crc32c.value(payload.tobytes())
        assert finite.crc32c_and_finite(payload, spec) == checksum.crc32c_and_finite(payload, spec)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", SPECS)
def test_one_number_that_is_not_finite_anywhere(name: str) -> None:
    spec = SPECS[name]
    infinity = finite.infinity_bits(spec)
    payload = finite_bytes(spec, 1500, 0)
    words = payload.view(f"<u{np.dtype(spec.dtype).itemsize}")
    for place in [*range(0, 1500, 7), 1499]:
        before = words[place]
        for bits in (infinity, infinity + 1, infinity | 1 << 8 * words.itemsize - 1) if infinity else (255,):
            words[place] = bits
            expected = google_crc32c.value(payload.tobytes()), infinity is None
            assert checksum.crc32c_and_finite(payload, spec) == expected, (place, bits)
            assert checksum.is_finite(payload, spec) == (infinity is None)
        words[place] = before


@pytest.mark.parametrize("bits", [128, 256, 512])
def test_registers_of_every_width(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if bits > checksum.REGISTER_BITS:
        pytest.skip(f"the processor has registers of {checksum.REGISTER_BITS} bits for it")
    monkeypatch.setattr(checksum, "REGISTER_BITS", bits)

    @numba.njit  # type: ignore[untyped-decorator]
    def fold(words: Any, remainder: Any) -> Any:
        return checksum._fold_words(words, remainder)

    step = checksum._REGISTERS * bits // 8
    for blocks in (1, 2, 3, 50):
        payload = finite_bytes(SPECS["float16"], blocks * step // 2, blocks)
        payload.view(np.uint16)[-2] = 0x7BFF  # the largest finite one
        remainder = np.zeros(2, np.uint64)
        assert fold(payload.view(np.uint16), remainder) == 0x7BFF
        value = crc32c_library.crc32c(remainder, checksum._FROM_ZERO)
        assert value == google_crc32c.value(payload.tobytes())


def test_a_processor_without_any_of_the_instructions() -> None:
    """Neither carry-less multiplication nor the crc32c of SSE 4.2: tables, and code for any x86-64."""
    code = """if True:
        import sys, crc32c, numpy as np
        from saecache.store.encoding import checksum
        from saecache.store.layout import ArraySpec
        assert checksum.REGISTER_BITS == 0 and not crc32c.hardware_based
        payload = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
        for dtype, bits_of in (("float16", None), ("uint16", "bfloat16"), ("float32", None), ("int8", None)):
            spec = ArraySpec("x", (1,), dtype, 1, 1, ("row",), bits_of=bits_of)
            print(checksum.crc32c(payload), *checksum.crc32c_and_finite(payload, spec))
    """
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "CRC32C_SW_MODE": "force"}
    payload = np.random.default_rng(0).integers(0, 256, (1 << 20) + 24, np.uint8)  # all kinds of NaN too
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=payload.tobytes(), env=environment, capture_output=True, check=True)
    value = google_crc32c.value(payload.tobytes())
    expected = [f"{value} {value} {name == 'int8'}" for name in ("float16", "bfloat16", "float32", "int8")]
    assert done.stdout.decode().splitlines() == expected
