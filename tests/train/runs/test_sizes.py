"""The room that a run takes on the disk is compared with what is free before its first step."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes
from saecache.train import TrainConfig, run
from saecache.train.runs import recorder
from saecache.train.runs.planning import plan_run

TOPK, RELU = {"kind": "topk", "k": 4}, {"kind": "relu"}
SPARE = 64 << 20  # bytes that stay free


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix == ".safetensors")


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def install(number: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=number))

    return install


@pytest.mark.parametrize(("every_steps", "keep"), [(2, 1), (2, 2), (3, 9), (100, 2)])
def test_no_run_takes_more_than_was_planned(
    make_cache: Callable[..., ActivationCache],
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every_steps: int,
    keep: int,
) -> None:
    """Nor much less: tensors of one number for each latent, and the headers of files, are not planned."""
    cache, out = make_cache(d_model=128), tmp_path / "run"
    config = make_config(TOPK, RELU, num_latents=512, checkpoint={"every_steps": every_steps, "keep": keep})
    found = []

    def prune(*arguments: Any) -> None:
        found.append(bytes_in(out))
        remove(*arguments)

    remove = recorder.prune
    monkeypatch.setattr(recorder, "prune", prune)
    run(config, cache, out)
    planned = plan_run(config, cache).disk_bytes
    assert 0.97 < max(*found, bytes_in(out)) / planned < 1.06


def test_a_disk_without_room_is_said_before_the_first_step(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    free_bytes: Callable[[int], None],
    tmp_path: Path,
) -> None:
    config, out = make_config(TOPK, RELU, checkpoint={"every_steps": 2, "keep": 3}), tmp_path / "run"
    needed = plan_run(config, cache).disk_bytes
    free_bytes(needed + SPARE - 1)
    with pytest.raises(UsageError, match=r"checkpoints \(of 2 SAEs, 3 kept and one being saved\), 64.* free"):
        run(config, cache, out)
    assert not out.exists()
    free_bytes(needed + SPARE)
    assert run(config, cache, out).saes


def test_what_a_run_has_written_already_has_its_room(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    free_bytes: Callable[[int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = make_config(TOPK, checkpoint={"every_steps": 2, "keep": 3}), tmp_path / "run"
    alone = run(config, cache, tmp_path / "alone")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recorder, "prune", stop)
        run(config, cache, out)
    there = bytes_in(out)
    assert there > 0
    free_bytes(plan_run(config, cache).disk_bytes + SPARE - there)
    again = run(config, cache, out)
    assert folder_bytes(again.saes["topk_k4"]) == folder_bytes(alone.saes["topk_k4"])
    free_bytes(0)
    assert run(config, cache, out).reused, "a finished run needs no room"
