"""Trackers receive the metrics; stand-ins replace the packages."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import metrics
from saecache.train import TrainConfig, run

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
    assert recorded.named("SummaryWriter") == [((str(tmp_path / "run" / "tensorboard"),), {"purge_step": 0})]
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
    assert (options["project"], options["id"], options["resume"]) == ("p", "run", "allow")
    logged = [values["topk_k4/fvu"] for (values,), _ in recorded.named("log")]
    assert logged == [line["fvu"] for line in metrics(tmp_path / "run")]
    assert len(recorded.named("finish")) == 1
