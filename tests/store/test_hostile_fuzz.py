"""Every file that can come from elsewhere, damaged at random: read rightly, or refused by name."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecache.harvest.job.row_writer import Progress
from saecache.store import CacheWriter, StorageConfig

from .encodings import ENCODINGS

LONG = bool(os.environ.get("SAECACHE_LONG_TESTS"))
ROUNDS = 1500 if LONG else 25  # of each cache


@pytest.fixture
def corpus(tmp_path: Path, make_source: Callable[..., Any], write_cache: Callable[..., Any]) -> Path:
    """Small caches in every encoding, one without tokens, and one whose writing was stopped."""
    source = make_source(sequences=12, context=8, hooks={"h.0": 24, "h.1": 17})
    for name, storage in ENCODINGS.items():
        write_cache(tmp_path / "finished" / name, source, storage=storage)
    rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    with CacheWriter(
        tmp_path / "finished" / "rows", hooks={"h": 8}, identity={}, heldout_fraction=0.1
    ) as one:
        one.write_rows({"h": rows})
    stop_writing(tmp_path / "unfinished", rows)
    return tmp_path


def stop_writing(path: Path, rows: Any) -> None:
    """Leave a journal, a spill, and records of some finished shards."""

    def stop(*_: int) -> None:
        if len(list((path / ".writing" / "done").iterdir())) > 3:
            raise KeyboardInterrupt

    storage = StorageConfig(chunk_rows=32, shard_bytes=4096, memory_bytes=1 << 20)
    with (
        pytest.raises(KeyboardInterrupt),
        CacheWriter(path, hooks={"h": 8}, context=4, identity={"source": "fuzz"}, storage=storage) as one,
    ):
        ids = np.arange(200).reshape(50, 4)
        one.write_sequences(ids=ids, documents=ids // 20, keep=ids >= 0, activations={"h": rows})
        one.commit(Progress(batch_size=4).to_json())
        one.finalize(on_progress=stop)
    shutil.rmtree(path / "provenance", ignore_errors=True)


def test_files_that_were_damaged_at_random(corpus: Path) -> None:
    """SAECACHE_FUZZ_SEED repeats a run; without it the seed is the same each time, or new in a long run."""
    seed = int(os.environ.get("SAECACHE_FUZZ_SEED", random.SystemRandom().randrange(10**6) if LONG else 0))
    script = Path(__file__).with_name("fuzzing.py")
    command = [sys.executable, str(script), str(corpus), str(seed), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"SAECACHE_FUZZ_SEED={seed}\n{done.stdout[-8000:]}\n{done.stderr[-3000:]}"
