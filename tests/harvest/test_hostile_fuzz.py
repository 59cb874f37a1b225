"""Every file of a model's folder, damaged at random: the model loads, or is refused with its folder named."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LONG = bool(os.environ.get("SAECACHE_LONG_TESTS"))
ROUNDS = 1500 if LONG else 40


def test_models_that_were_damaged_at_random(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """SAECACHE_FUZZ_SEED repeats a run; without it the seed is the same each time, or new in a long run."""
    seed = int(os.environ.get("SAECACHE_FUZZ_SEED", random.SystemRandom().randrange(10**6) if LONG else 0))
    script = Path(__file__).with_name("fuzzing.py")
    command = [sys.executable, str(script), str(model_folder("neox")), str(tmp_path), str(seed)]
    done = subprocess.run([*command, str(ROUNDS)], capture_output=True, text=True)
    assert done.returncode == 0, f"SAECACHE_FUZZ_SEED={seed}\n{done.stdout[-8000:]}\n{done.stderr[-3000:]}"
