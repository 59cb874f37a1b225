"""Memory does not grow with the cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).parents[2] / "benchmarks" / "memory.py"
ROWS = 8_192  # 4 MiB of rows, as large as the writer's memory; then eight times that
SETTINGS = ("--width", "256", "--memory-mib", "4", "--chunk-rows", "256", "--kept-mib", "0")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_eight_times_the_rows_in_the_same_memory(tmp_path: Path) -> None:
    peaks = []
    for number, times in enumerate((1, 1, 1, 8)):  # of a short run a busy machine may miss the peak
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, PROBE, "--rows", str(ROWS * times), "--folder", folder, *SETTINGS]
        peaks.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    *small, eight = peaks
    one = {
        part: {kind: max(peak[part][kind] for peak in small) for kind in ("anonymous", "mapped")}
        for part in small[0]
    }
    reading = ["read, epoch 0", "read, epoch 1", "read by number"]
    assert list(one) == ["write", "finalize", *reading, "convert", "read compressed"]
    for part in one:
        # The rows grew by 28 MiB. Of mapped chunks the larger cache has the whole window, 8 MiB.
        for kind, most_grown, most in (("anonymous", 4 << 20, 16 << 20), ("mapped", 8 << 20, 16 << 20)):
            grown = eight[part][kind] - one[part][kind]
            assert grown < most_grown, (part, kind, one, eight)
            assert eight[part][kind] < most, (part, kind, eight)
