"""What decides a row's bits is recorded, and a harvest that continues takes what was recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.common.errors import UsageError
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest.identity import Existing
from saecache.harvest.job import batch_size
from saecache.harvest.model import conditions
from saecache.harvest.model.conditions import forward_conditions, recorded_attention, recorded_device
from saecache.harvest.plan import settle_device
from saecache.harvest.runner import run
from saecache.store import open_cache

from ..job.test_resume import digests, edit_progress, stopped_while_reading

MakeConfig = Callable[..., HarvestConfig]
NEW = ("device", "attention", "matmul_precision", "encoder")  # of version 0.3


class Model:
    """As much of a language model as conditions are made of."""

    quantization: str | None = None
    attention = "sdpa"

    def __init__(self, *devices: str) -> None:
        self.devices = [torch.device(name) for name in devices]
        self.device = self.devices[0]


def conditions_on(*devices: str, **facts: Any) -> dict[str, Any]:
    model: Any = Model(*devices)
    for name, value in facts.items():
        setattr(model, name, value)
    return forward_conditions(model, 24)


@pytest.fixture
def config(make_config: MakeConfig) -> HarvestConfig:
    return make_config(num_tokens=1500, batch_size=32, device="auto")


def test_of_a_cpu_and_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        conditions, "device_name", lambda device: {1: "H100", 2: "A100"}.get(device.index, "H100")
    )
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    on_cpu, on_gpus = conditions_on("cpu"), conditions_on("cuda:1", "cuda:2", "cuda:3")
    assert on_cpu["device"] == "cpu" and "batch_size" not in on_cpu and "cuda" not in on_cpu
    assert on_gpus["processor"] == "A100, H100" and on_gpus["batch_size"] == 24
    assert (on_gpus["device"], on_gpus["cuda"]) == ("cuda", "12.8")
    assert {each["attention"] for each in (on_cpu, on_gpus)} == {"sdpa"}
    assert {each["matmul_precision"] for each in (on_cpu, on_gpus)} == {"highest"}


def test_of_a_quantized_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "software_versions", lambda names: dict.fromkeys(names, "1.0"))
    assert "bitsandbytes" not in conditions_on("cpu")
    assert conditions_on("cpu", quantization="bitsandbytes")["bitsandbytes"] == "1.0"
    assert conditions_on("cpu", quantization="fbgemm_fp8").keys() == conditions_on("cpu").keys()


@pytest.mark.parametrize(
    ("progress", "device"),
    [
        ({}, None),
        ({"tokens": 0, "conditions": {"device": "cpu"}}, None),
        ({"tokens": 5, "conditions": None}, None),
        ({"tokens": 5, "conditions": {"device": "mps", "processor": "mps", "batch_size": 4}}, "mps"),
        ({"tokens": 5, "conditions": {"processor": "AVX2"}}, "cpu"),
        ({"tokens": 5, "conditions": {"processor": "H100", "batch_size": 4}}, None),
    ],
)
def test_the_device_that_a_journal_names(progress: dict[str, Any], device: str | None) -> None:
    assert recorded_device(progress) == device


def test_an_interrupted_harvest_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    begun = Existing({}, None, {"tokens": 5, "conditions": {"device": "cpu"}})
    assert settle_device("auto", begun).type == "cpu"
    assert settle_device("auto", None).type == "cuda"
    elsewhere = Existing({}, None, {"tokens": 5, "conditions": {"device": "xpu"}})
    assert settle_device("auto", elsewhere).type == "cuda"


def test_an_interrupted_harvest_keeps_its_attention(config: HarvestConfig, tmp_path: Path) -> None:
    stopped_while_reading(config, tmp_path / "cache")
    edit_progress(tmp_path / "cache", lambda progress: progress["conditions"].update(attention="eager"))
    run(config, tmp_path / "cache")
    assert open_cache(tmp_path / "cache").provenance["conditions"]["attention"] == "eager"


def test_attention_of_strangers_is_not_run(
    config: HarvestConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would download it from the hub."""
    stopped_while_reading(config, tmp_path / "cache")
    edit_progress(
        tmp_path / "cache", lambda progress: progress["conditions"].update(attention="evil/attention")
    )
    with pytest.raises(UsageError, match="attention: evil/attention there, sdpa here"):
        run(config, tmp_path / "cache")
    assert recorded_attention({"tokens": 5, "conditions": {"attention": ["sdpa"]}}) is None


def test_another_matmul_precision_is_refused(config: HarvestConfig, tmp_path: Path) -> None:
    stopped_while_reading(config, tmp_path / "cache")
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(UsageError, match=r"\(torch\.set_float32_matmul_precision\('highest'\)\)"):
            run(config, tmp_path / "cache")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_journals_of_version_0_2_are_continued(config: HarvestConfig, tmp_path: Path) -> None:
    whole = run(config, tmp_path / "whole")
    stopped_while_reading(config, tmp_path / "cache")

    def as_version_0_2(progress: dict[str, Any]) -> None:
        for name in NEW:
            del progress["conditions"][name]

    edit_progress(tmp_path / "cache", as_version_0_2)
    assert digests(Path(run(config, tmp_path / "cache").path)) == digests(Path(whole.path))


def test_a_batch_size_that_was_measured_is_measured_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_tokens=1500, batch_size="auto")
    monkeypatch.setattr(batch_size, "choose_batch_size", lambda *_: 32)
    stopped_while_reading(config, tmp_path / "cache")
    monkeypatch.setattr(batch_size, "choose_batch_size", lambda *_: pytest.fail("measured again"))
    run(config, tmp_path / "cache")
    assert open_cache(tmp_path / "cache").provenance["batch_size"] == 32


def test_the_attention_of_a_loaded_model(model_folder: Callable[[str], Path]) -> None:
    assert LanguageModel.load(str(model_folder("neox")), device="cpu").attention == "sdpa"
