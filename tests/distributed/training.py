"""What each process of test_training.py does: train as its arguments say, and print how it ended as JSON.

The deed of one process happens before the batch of a step: a signal to itself, an encoder that is NaN, a full
disk. ``watch`` has the two steps between which the traffic is counted.
"""

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from saecache.common.errors import SaecacheError
from saecache.distributed import join_world
from saecache.store.reading.reader import open_cache
from saecache.train import TrainConfig, run
from saecache.train.engine import loop
from saecache.train.engine.trainee import Trainee


def refuse_to_write(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def do(deed: dict[str, Any], trainee: Trainee) -> None:
    if "signal" in deed:
        os.kill(os.getpid(), getattr(signal, deed["signal"]))
    if "poisoned" in deed:
        trainee.parameters["W_enc"][deed["poisoned"]] = torch.nan
    if "full" in deed:
        os.pwrite = refuse_to_write


def main(cache: str, out: str, config: str, deed: dict[str, Any]) -> dict[str, Any]:
    original, told = loop.train_on_batch, []

    with join_world() as world:
        traffic = world.everyone.traffic

        def watched(trainee: Trainee, *arguments: Any, **settings: Any) -> None:
            if settings["step"] in deed.get("watch", ()):
                told.append(traffic.bytes)
            if settings["step"] == deed.get("step") and world.rank == deed["rank"]:
                do(deed, trainee)
                deed.clear()  # once, for the first variant
            original(trainee, *arguments, **settings)

        loop.train_on_batch = watched
        try:
            result = run(TrainConfig.model_validate_json(config), open_cache(Path(cache)), out)
        except KeyboardInterrupt:
            return {"ended": "interrupted"}
        except SaecacheError as error:
            return {"ended": type(error).__name__, "message": str(error)}
        return {"ended": "well", "failed": result.failed, "traffic": told[1] - told[0] if told else 0}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4], json.loads(sys.argv[4]))))
