"""Processes that share the latents of SAEs end with the bytes of one process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes
from saecache.testing.sparse_rows import D_MODEL, small_run, write_sparse_cache
from saecache.train import TrainConfig, run

from ..train.device.kinds import SETTINGS, settings_of
from . import processes

PROGRAM = str(Path(__file__).with_name("training.py"))
LATENTS = 256  # four units of 64
Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return write_sparse_cache(tmp_path_factory.mktemp("cache") / "cache")


def config_of(*variants: dict[str, Any], **settings: Any) -> TrainConfig:
    sizes = {"num_latents": LATENTS, "batch_rows": 128, "steps": 6, "dead_after_rows": 256}
    return small_run(*variants, **{**sizes, **settings})


def every_kind() -> list[dict[str, Any]]:
    return [settings_of(name) | {"name": name.replace(" ", "_")} for name in SETTINGS]


def train_with(
    size: int, cache: ActivationCache, out: Path, config: TrainConfig, **deed: Any
) -> list[dict[str, Any]]:
    """Train with ``size`` processes; return how each ended, None for one that was killed."""
    arguments = [PROGRAM, str(cache.path), str(out), config.model_dump_json(), json.dumps(deed)]
    ended = processes.wait(processes.start(size, arguments, out.parent))
    for rank, one in enumerate(ended):
        killed = deed.get("signal") == "SIGKILL" and rank == deed["rank"]
        assert one.status == (-9 if killed else 0), f"process {rank}: {one.errors[-3000:]}"
    return [json.loads(one.output or '{"ended": "killed"}') for one in ended]


def ends(found: list[dict[str, Any]]) -> list[str]:
    return [one["ended"] for one in found]


def assert_same_run(out: Path, alone: Path) -> None:
    assert lines_of(out) == lines_of(alone)
    expected, found = folder_bytes(alone), folder_bytes(out)
    for name in ("metrics.jsonl", ".lock"):  # times; its mere presence
        expected.pop(name, None), found.pop(name, None)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


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


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_kind_has_the_bytes_of_one_process(
    size: int, cache: ActivationCache, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    found = train_with(size, cache, out, config_of(*every_kind()))
    assert ends(found) == ["well"] * size
    assert_same_run(out, alone)


def stop_and_continue(
    sizes: tuple[int, int], deed: dict[str, Any], cache: ActivationCache, out: Path, config: TrainConfig
) -> None:
    """Train with ``sizes[0]`` processes until the ``deed`` in one, then to the end with ``sizes[1]``."""
    found = ends(train_with(sizes[0], cache, out, config, step=4, **deed))
    if deed["signal"] == "SIGKILL":
        assert found.pop(deed["rank"]) == "killed"
        assert found == ["LostProcessError"] * (sizes[0] - 1)
    else:
        assert found == ["interrupted"] * sizes[0]
    assert ends(train_with(sizes[1], cache, out, config)) == ["well"] * sizes[1]


SOME = [{"kind": "topk", "k": 5}, {"kind": "batch_topk", "k": 5}, {"kind": "feature_choice", "k": 5}]


@pytest.fixture(scope="module")
def some_alone(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("some") / "run"
    run(config_of(*SOME, calibration={}), cache, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "deed"), [
    ((4, 2), {"rank": 2, "signal": "SIGKILL"}),
    ((3, 1), {"rank": 1, "signal": "SIGTERM"}),
    ((1, 4), {"rank": 0, "signal": "SIGINT"}),
])  # fmt: skip
def test_another_number_of_processes_continues(
    sizes: tuple[int, int], deed: dict[str, Any], cache: ActivationCache, some_alone: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", config_of(*SOME, calibration={})
    stop_and_continue(sizes, deed, cache, out, config)
    final = [name for name in folder_bytes(some_alone) if "step_00000005" not in name]
    assert lines_of(out) == lines_of(some_alone)
    assert [n for n in final if "/sae/" in n and folder_bytes(out)[n] != folder_bytes(some_alone)[n]] == []


@pytest.mark.slow
def test_a_variant_that_diverges_in_one_process_stops_in_all(cache: ActivationCache, tmp_path: Path) -> None:
    config = config_of({"kind": "topk", "k": 4}, {"kind": "topk", "k": 4, "name": "other"})
    found = train_with(2, cache, tmp_path / "run", config, rank=1, step=3, poisoned=3)
    assert ends(found) == ["well"] * 2
    assert found[0]["failed"] == found[1]["failed"]
    (name, reason), *others = found[0]["failed"].items()
    assert not others or {name, others[0][0]} == {"topk_k4", "other"}
    assert "latent 131 is NaN" in reason and "step 4" in reason


@pytest.mark.slow
def test_a_full_disk_of_one_process_ends_all(
    cache: ActivationCache, some_alone: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", config_of(*SOME, calibration={})
    first, second = train_with(2, cache, out, config, rank=1, step=4, full=True)
    assert (first["ended"], second["ended"]) == ("OtherProcessError", "SaecacheError")
    assert "No space left" in second["message"]
    assert ends(train_with(2, cache, out, config)) == ["well"] * 2
    assert_same_run(out, some_alone)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_the_traffic_of_a_step_is_candidates_and_one_sum(
    size: int, cache: ActivationCache, tmp_path: Path
) -> None:
    rows, width, k, steps = 128, D_MODEL, 5, 2
    config = config_of(
        {"kind": "topk", "k": k, "auxk": None}, steps=6, log={"every_steps": 6}, checkpoint={"every_steps": 6}
    )
    found = train_with(size, cache, tmp_path / "run", config, watch=[2, 2 + steps])
    largest = LATENTS // 64 // size + (LATENTS // 64 % size > 0)  # units of a process
    flags = 6 * 8  # finite; room; twice whether there are many pairs; stop; still running
    candidates, counts = 4 * rows * k, 8 * rows
    through_encoder, norms = 4 * width * largest, 8 * 3 * 64 * largest
    to_each_other = flags + candidates + counts + through_encoder + norms
    for rank, one in enumerate(found):
        sums = 4 * rows * width * (size - 1 if rank == size - 1 else 1)
        assert one["traffic"] == steps * ((size - 1) * to_each_other + sums)


@pytest.mark.parametrize(("parallel", "message"), [
    ({"latents": 3}, "need 3 processes, and there are 2"),
    ({"variants": 2}, "more than the 1 SAEs of the run"),
])  # fmt: skip
def test_processes_that_cannot_share_the_work_are_refused(
    parallel: dict[str, Any], message: str, cache: ActivationCache, tmp_path: Path
) -> None:
    config = config_of({"kind": "topk", "k": 4}, parallel=parallel)
    first, second = train_with(2, cache, tmp_path / "run", config)
    assert (first["ended"], second["ended"]) == ("UsageError", "OtherProcessError")
    assert message in first["message"]


def test_too_few_latents_are_refused(cache: ActivationCache, tmp_path: Path) -> None:
    config = config_of({"kind": "topk", "k": 4}, num_latents=64)
    first, *others = train_with(3, cache, tmp_path / "run", config)
    assert first["ended"] == "UsageError" and "which come in 2 parts" in first["message"]
    assert ends(others) == ["OtherProcessError"] * 2


@pytest.mark.slow
def test_groups_of_processes_share_the_variants(
    cache: ActivationCache, some_alone: Path, tmp_path: Path
) -> None:
    config = config_of(*SOME, calibration={}, parallel={"variants": 2})
    assert ends(train_with(4, cache, tmp_path / "run", config)) == ["well"] * 4
    expected, found = folder_bytes(some_alone), folder_bytes(tmp_path / "run")
    assert lines_of(tmp_path / "run") == lines_of(some_alone)
    assert [n for n in expected if "/" in n and found[n] != expected[n]] == []
