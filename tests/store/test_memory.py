"""Memory does not grow with the cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 8_000  # 4 MiB of rows, as large as the writer's memory; then eight times that
PARTS = ("write", "finalize", "read epoch 0", "read epoch 1", "gather")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_eight_times_the_rows_in_the_same_memory(tmp_path: Path) -> None:
    probe = Path(__file__).with_name("memory_probe.py")
    peaks = []
    for times in (1, 8):
        folder = tmp_path / str(times)
        folder.mkdir()
        command = [sys.executable, probe, folder, str(ROWS * times)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(json.loads(result.stdout))
    one, eight = peaks
    for part in PARTS:
        for kind in ("anonymous", "mapped"):
            grown = eight[part][kind] - one[part][kind]
            assert grown < 8 << 20, (part, kind, one, eight)  # the rows grew by 28 MiB
            assert eight[part][kind] < 32 << 20, (part, kind, eight)
