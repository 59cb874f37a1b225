"""Trackers receive the metrics; stand-ins replace the packages."""

import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import metrics
from saecache.train import TrainConfig, run
from saecache.train.runs.trackers import open_trackers, wandb_id

TOPK = {"kind": "topk", "k": 4}


class Recorded:
    """Accepts and records every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> "Recorded":
            self.calls.append((name, args, kwargs))
            return self

        return record

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_tensorboard_gets_every_number(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = Recorded()
    stand_in(monkeypatch, "tensorboard")
    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=recorded.SummaryWriter)
    run(
        make_config(TOPK, log={"every_steps": 4, "progress": False, "tensorboard": True}),
        cache,
        tmp_path / "run",
    )
    assert recorded.named("SummaryWriter") == [((str(tmp_path / "run" / "tensorboard"),), {"purge_step": 1})]
    written = {(tag, step): value for (tag, value, step), _ in recorded.named("add_scalar")}
    lines = metrics(tmp_path / "run")
    assert [written["fvu/topk_k4", line["step"]] for line in lines] == [line["fvu"] for line in lines]
    assert ("rows/topk_k4", 4) in written and ("variant/topk_k4", 4) not in written
    assert len(recorded.named("close")) == 1


def test_wandb_gets_every_number(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = Recorded()
    stand_in(monkeypatch, "wandb", init=recorded.init)
    log = {"every_steps": 4, "progress": False, "wandb_project": "p"}
    run(make_config(TOPK, log=log), cache, tmp_path / "run")
    (_, options), *_ = recorded.named("init")
    assert (options["project"], options["name"], options["resume"]) == ("p", "run", "allow")
    assert re.fullmatch("run-[0-9a-f]{8}", options["id"])
    logged = [values["topk_k4/fvu"] for (values,), _ in recorded.named("log")]
    assert logged == [line["fvu"] for line in metrics(tmp_path / "run")]
    assert len(recorded.named("finish")) == 1


def test_a_resumed_run_keeps_the_points_of_its_checkpoint(
    make_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard hides what stands from ``purge_step`` on; the lines up to step 10 do not come again."""
    recorded = Recorded()
    stand_in(monkeypatch, "tensorboard")
    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=recorded.SummaryWriter)
    open_trackers(make_config(TOPK, log={"tensorboard": True}), tmp_path, 10)
    ((_, options),) = recorded.named("SummaryWriter")
    assert options == {"purge_step": 11}


def test_the_id_in_wandb_is_one_of_the_folder(tmp_path: Path) -> None:
    """Two folders of one name were one run there, and so was a run that was begun anew."""
    one, other = tmp_path / "a" / "my run", tmp_path / "b" / "my run"
    for folder in (one, other):
        folder.mkdir(parents=True)
    first = wandb_id(one, 0)
    assert first.startswith("my-run-") and wandb_id(one, 20) == first
    assert wandb_id(other, 0) != first
    assert wandb_id(one, 0) == first, "it was killed before its first checkpoint"
    (one / "wandb" / "saecache-id").write_text("../" * 30)
    assert wandb_id(one, 20).startswith("my-run-"), "what is no id is not handed on"


def test_a_run_of_version_0_2_0_goes_on_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert wandb_id(tmp_path / "run", 20) == "run"


def test_the_id_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "wandb").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        wandb_id(tmp_path / "run", 0)
    assert list((tmp_path / "elsewhere").iterdir()) == []
