"""What each process of test_training.py does: train as its arguments say, and print how that ended as JSON."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saecache.distributed import join_world
from saecache.store.reading.reader import open_cache
from saecache.train import TrainConfig, run
from saecache.train.engine import loop


def at_step(step: int, act: Callable[[], None]) -> None:
    """Call ``act`` before the batch of the 0-based ``step``."""
    original = loop.train_on_batch

    def patched(*arguments: Any, **settings: Any) -> None:
        if settings["step"] == step:
            act()
        original(*arguments, **settings)

    loop.train_on_batch = patched


def main(cache: str, out: str, config: str, deed: dict[str, Any]) -> dict[str, Any]:
    with join_world() as world:
        if deed.get("rank") == world.rank:
            number = getattr(signal, deed["signal"])
            at_step(deed["step"], lambda: os.kill(os.getpid(), number))
        traffic = world.everyone.traffic
        result = run(TrainConfig.model_validate_json(config), open_cache(Path(cache)), out)
        return {"failed": result.failed, "bytes": traffic.bytes, "messages": traffic.messages}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4], json.loads(sys.argv[4]))))
