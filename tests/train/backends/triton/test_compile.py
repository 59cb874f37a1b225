"""Kernels compile for GPUs that are not here, in a process without Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # of a block, at most
TENSOR_CORES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}

WALK_ALONG_PAIRS = {
    "_pairs_kernel", "_matrix_kernel", "_decode_kernel", "_reconstruct_kernel", "_segments_kernel",
    "_one_kernel", "_both_kernel", "_sums_kernel",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(capability), "--once"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) >= 24
    for line in report:
        assert "error" not in line, line
        assert line["spill stores"] == line["spill loads"] == 0, f"registers spill: {line}"
        assert line["shared"] <= SHARED_BYTES[capability], line
        assert not line["float_atomics"], line
        if line["kernel"].split()[0] in WALK_ALONG_PAIRS:
            assert not line["cuts_numbers"], f"a place beyond 2^31 is cut to 32 bits: {line}"
        if line["kernel"].startswith("_screen_kernel"):
            assert TENSOR_CORES[capability] in line["mma"], line
