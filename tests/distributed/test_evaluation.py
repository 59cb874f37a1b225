"""Evaluations of several processes: each does its part, and the results have the same bytes."""

from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes
from saecache.train import TrainConfig
from saecache.train import run as train
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.topk import TopK

from ..evaluate.conftest import HOOK, OTHER_HOOK, SHORT_RUN, cache, make_sae, model
from .evaluating import CASES, evaluate_with
from .processes import forkserver

__all__ = ["cache", "model"]  # fixtures


@pytest.fixture(scope="module")
def saes(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAEs of one hook, of another one and of both, and a transcoder with a skip connection."""
    folder = tmp_path_factory.mktemp("saes")
    for sae in (
        make_sae(cache, "topk_k4", TopK(k=4)),
        make_sae(cache, "batch_topk_k6", BatchTopK(k=6), seed=1),
        make_sae(cache, "raw_k4", TopK(k=4), hook=OTHER_HOOK, kind="scale", seed=2),
    ):
        sae.save(folder / sae.cfg.name / "sae")
    for name, settings in (
        ("crosscoder", {"hook": "all", "crosscoder": True}),
        ("skipping", {"hook": HOOK, "target": {"hook": OTHER_HOOK, "skip": True}}),
    ):
        variant = {"kind": "batch_topk", "k": 6, "name": name}
        config = TrainConfig.model_validate({"variants": [variant], **SHORT_RUN, "steps": 3, **settings})
        train(config, cache, folder / "runs" / name)
        (folder / "runs" / name / name).rename(folder / name)
    return folder


def test_processes_share_every_measure_and_give_the_same_bytes(
    cache: ActivationCache, saes: Path, tmp_path: Path
) -> None:
    processes: ForkServerContext = forkserver()
    found: dict[int, list[dict[str, Any]]] = {}
    for size in (1, 2, 3, 4):
        found[size] = evaluate_with(processes, size, Path(cache.path), saes, tmp_path / str(size))
    (alone,) = found[1]
    expected = files_of(tmp_path / "1")
    assert len([name for name in expected if name.endswith("latents.safetensors")]) == 7
    for size in (2, 3, 4):
        for one in found[size]:
            for name, case in alone.items():
                assert without_time(one[name]["results"]) == without_time(case["results"]), (
                    f"{name} of {size}"
                )
        files = files_of(tmp_path / str(size))
        assert files.keys() == expected.keys()
        assert [name for name in expected if files[name] != expected[name]] == []
        for name, case in alone.items():
            for what, count in case["done"].items():
                parts = [one[name]["done"].get(what, 0) for one in found[size]]
                assert max(parts) < 0.75 * count, f"{name}: {what} of {size} processes: {parts} of {count}"
    assert alone["one"]["results"]["saes"][0]["normalized"]["intervals"]
    assert alone["several"]["results"]["saes"][2]["hooks"][1]["language_model"]
    assert alone["texts"]["done"]["probes"] == 9 and alone["texts"]["done"]["rows"]
    assert alone.keys() == {*CASES, "texts"}


def without_time(results: Any) -> Any:
    return {**results, "created": ""} if isinstance(results, dict) else results


def files_of(folder: Path) -> dict[str, bytes]:
    """The folders of latents that an evaluation has written."""
    return {name: content for name, content in folder_bytes(folder).items() if ".latents/" in name}
