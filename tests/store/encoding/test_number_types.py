"""float32 to float16 by the processor and on the bits, against NumPy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saecache.store.encoding import number_types


@pytest.mark.parametrize("way", [number_types.narrow, number_types.narrow_by_bits])
@pytest.mark.parametrize("start", range(0, 0x8000, 0x1000))
def test_numbers_are_rounded_to_nearest_even(way, start: int) -> None:  # type: ignore[no-untyped-def]
    """Around every float16: itself, the middle to the next, and the float32 beside them."""
    exact = np.arange(start, start + 0x1000, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = exact[np.isfinite(exact)].view(np.uint32)
    middle = (bits.astype(np.uint64) + (0x1000 if start else 1)).astype(np.uint32)
    around = np.concatenate([bits - 1, bits, bits + 1, middle - 1, middle, middle + 1])
    values = around.view(np.float32)
    values = np.concatenate([values, -values, np.float32([65504, 65519.996, 65520, 1e30, np.inf])])
    values = values[~np.isnan(values)]
    target = np.empty(len(values) + 3, np.uint16)
    largest = way(values, target)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(target[:-3], expected.view(np.uint16))
    assert largest == (expected.view(np.uint16) & 0x7FFF).max()


@pytest.mark.parametrize("way", [number_types.narrow, number_types.narrow_by_bits])
def test_subnormals_and_nan(way) -> None:  # type: ignore[no-untyped-def]
    values = np.linspace(-(2.0**-13), 2.0**-13, 20001, dtype=np.float32)
    target = np.empty(len(values), np.uint16)
    way(values, target)
    assert np.array_equal(target, values.astype(np.float16).view(np.uint16))
    assert way(np.float32([1, np.nan, 2]), target) > 0x7C00
    assert way(np.float32([1, -np.inf, 2]), target) == 0x7C00


def test_without_the_instruction_rows_are_rounded_all_the_same(tmp_path: Path) -> None:
    """Compiled for a processor that does not have it; a call of what does not exist would end the process."""
    code = (
        "import numpy as np; from saecache.store.encoding.number_types import narrow;"
        "t = np.empty(8, np.uint16);"
        "narrow(np.full(8, 0.1, np.float32), t); print(t.view(np.float16)[0] == np.float16(0.1))"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
