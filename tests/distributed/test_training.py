"""Processes that share the latents of SAEs end with the bytes of one process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig, run

from ..train.conftest import write_cache
from ..train.device.kinds import SETTINGS, settings_of
from ..train.variant_contract import folder_bytes
from . import processes

PROGRAM = str(Path(__file__).with_name("training.py"))
LATENTS = 256  # four units of 64
Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return write_cache(tmp_path_factory.mktemp("cache") / "cache")


def config_of(*variants: dict[str, Any], **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "num_latents": LATENTS,
        "batch_rows": 128,
        "steps": 6,
        "dead_after_rows": 256,
        "optimizer": {"learning_rate": 0.003},
        "checkpoint": {"every_steps": 3, "keep": 9},
        "log": {"every_steps": 2, "progress": False},
        "device": "cpu",
    }
    return TrainConfig.model_validate({"variants": list(variants), **defaults, **settings})


def every_kind() -> list[dict[str, Any]]:
    return [settings_of(name) | {"name": name.replace(" ", "_")} for name in SETTINGS]


def train_with(
    size: int, cache: ActivationCache, out: Path, config: TrainConfig, **deed: Any
) -> list[processes.Ended]:
    arguments = [PROGRAM, str(cache.path), str(out), config.model_dump_json(), json.dumps(deed)]
    return processes.wait(processes.start(size, arguments, out.parent))


def assert_all_ended_well(ended: list[processes.Ended]) -> None:
    for rank, one in enumerate(ended):
        assert one.status == 0, f"process {rank}: {one.errors[-3000:]}"


def lines_of(out: Path) -> list[dict[str, Any]]:
    timing = {"seconds", "rows_per_second", "data_wait_fraction"}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timing} for line in lines]


@pytest.fixture(scope="module")
def alone(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of every kind by one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    result = run(config_of(*every_kind()), cache, out)
    assert not result.failed
    return out


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_kind_has_the_bytes_of_one_process(
    size: int, cache: ActivationCache, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert_all_ended_well(train_with(size, cache, out, config_of(*every_kind())))
    assert lines_of(out) == lines_of(alone)
    expected, found = folder_bytes(alone), folder_bytes(out)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
