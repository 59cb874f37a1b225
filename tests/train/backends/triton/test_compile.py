"""Kernels compile for GPUs that are not here, in a process without Triton's interpreter."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saecache.store.encoding import triton_encode
from saecache.train.backends import triton

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # of a block, at most
TENSOR_CORES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}

WALK_ALONG_PAIRS = {
    "_pairs_kernel", "_matrix_kernel", "_decode_kernel", "_reconstruct_kernel", "_segments_kernel",
    "_one_kernel", "_both_kernel", "_sums_kernel", "_nested_kernel",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One line for every kernel and GPU, of a process that starts without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = str(Path(__file__).with_name("compile_kernels.py"))
    done = subprocess.run(
        [sys.executable, script, *map(str, SHARED_BYTES), "--once"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines: list[dict[str, Any]] = json.loads(done.stdout)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile(capability: int, report: list[dict[str, Any]]) -> None:
    lines = [line for line in report if line["capability"] == capability]
    for line in lines:
        assert "error" not in line, line
        assert line["spill stores"] == line["spill loads"] == 0, f"registers spill: {line}"
        assert line["shared"] <= SHARED_BYTES[capability], line
        assert not line["float_atomics"], line
        if line["kernel"].split()[0] in WALK_ALONG_PAIRS:
            assert not line["cuts_numbers"], f"a place beyond 2^31 is cut to 32 bits: {line}"
        if line["kernel"].startswith("_screen_kernel"):
            assert TENSOR_CORES[capability] in line["mma"], line


def kernels() -> set[tuple[str, str]]:
    """(module, name) of every kernel of the project."""
    modules = [f"{triton.__name__}.{module.name}" for module in pkgutil.iter_modules(triton.__path__)]
    found = [triton_encode, *map(importlib.import_module, modules)]
    return {
        (module.__name__, name)
        for module in found
        for name, value in vars(module).items()
        if name.endswith("_kernel") and value.fn.__module__ == module.__name__
    }


@pytest.mark.slow
def test_no_kernel_is_left_out(report: list[dict[str, Any]]) -> None:
    found = kernels()
    assert len(found) >= 24
    assert found == {(line["module"], line["kernel"].split()[0]) for line in report}


@pytest.mark.slow
def test_the_encoder_of_a_harvest_compiles_to_the_arithmetic_of_a_cpu(report: list[dict[str, Any]]) -> None:
    """Every operation rounds once, to nearest; numbers below the smallest normal one stay as they are."""
    lines = [line for line in report if line["encodes"]]
    assert len(lines) == 12 * len(SHARED_BYTES)
    for line in lines:
        assert "error" not in line, line
        assert line["spill stores"] == line["spill loads"] == 0, f"registers spill: {line}"
        assert not line["flushes"] and not line["fuses"] and not line["approximates"], line
