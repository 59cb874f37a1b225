"""Peak memory of a harvest does not grow with its size."""

import json
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saecache.harvest import HarvestConfig
from saecache.harvest.runner import run

TOKENS = 40_000
HOOKS = ["resid_pre.0", "gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.layers.0.input_layernorm"]
ROW_BYTES = len(HOOKS) * 32 * 4  # in float32: what keeping all rows would take


def private_bytes(process_id: int) -> int:
    """Memory of a process that is its own; mapped files, which the system takes back at will, are not."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_peak_memory_of_8_times_the_tokens(
    make_config: Callable[..., HarvestConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks above 64 KiB are mapped one by one: what the allocator keeps of freed ones does not count.
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "65536")
    sentence = "words that are said again and again, "
    lines = (json.dumps({"text": f"{i} {sentence * (i % 40)}"}) for i in range(4000))
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["saecache.harvest.job.phases", "transformers.models.gpt_neox.modeling_gpt_neox"]
    )
    peaks = []
    for times in (1, 8):
        config = make_config(
            text={"kind": "files", "paths": str(tmp_path / "text.jsonl")},
            tokens={"context": 64},
            hooks=HOOKS,  # hardly any forward, so that it is quick
            num_tokens=times * TOKENS,
            batch_size="auto",
            storage={"memory_bytes": 1 << 23},
        )
        process = context.Process(target=run, args=(config, tmp_path / str(times)))
        process.start()
        peak = 0
        while process.is_alive():
            peak = max(peak, private_bytes(process.pid))
            time.sleep(0.005)
        process.join()
        assert process.exitcode == 0
        peaks.append(peak)
    kept = 7 * TOKENS * ROW_BYTES
    assert peaks[1] - peaks[0] < kept / 4, peaks
