"""Processes that share the rows of a batch, with and without sharing the latents too.

The last bits of a run depend on how many share the rows, and on nothing else.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes
from saecache.testing.sparse_rows import D_MODEL
from saecache.train import run

from ..train.device.kinds import settings_of
from .test_training import (
    LATENTS,
    SOME,
    alone,
    assert_same_run,
    cache,
    config_of,
    ends,
    every_kind,
    lines_of,
    stop_and_continue,
    train_with,
)

__all__ = ["alone", "cache"]  # fixtures

ROWS = {"rows": 2}


@pytest.fixture(scope="module")
def by_two(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of every kind by two processes that share the rows."""
    out = tmp_path_factory.mktemp("rows") / "run"
    assert ends(train_with(2, cache, out, config_of(*every_kind(), parallel=ROWS))) == ["well"] * 2
    return out


@pytest.mark.slow
def test_every_kind_is_what_one_process_trains(by_two: Path, alone: Path) -> None:
    names = [variant["name"] for variant in every_kind()]
    for name in names:
        ours, expected = (load_file(out / name / "sae" / "weights.safetensors") for out in (by_two, alone))
        assert ours.keys() == expected.keys()
        for tensor, values in expected.items():
            torch.testing.assert_close(ours[tensor], values, rtol=1e-6, atol=1e-6, msg=f"{name}: {tensor}")
    for ours, expected in zip(lines_of(by_two), lines_of(alone), strict=True):
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            assert ours[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
        assert [ours[key] for key in ("l0", "l0_p50", "dead")] == [
            expected[key] for key in ("l0", "l0_p50", "dead")
        ]


@pytest.mark.slow
def test_sharing_the_latents_too_changes_no_byte(
    cache: ActivationCache, by_two: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert ends(train_with(4, cache, out, config_of(*every_kind(), parallel=ROWS))) == ["well"] * 4
    assert_same_run(out, by_two)


@pytest.fixture(scope="module")
def some_by_two(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("some_rows") / "run"
    config = config_of(*SOME, calibration={}, parallel=ROWS)
    assert ends(train_with(2, cache, out, config)) == ["well"] * 2
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "deed"), [
    ((4, 2), {"rank": 2, "signal": "SIGKILL"}),
    ((2, 4), {"rank": 1, "signal": "SIGTERM"}),
])  # fmt: skip
def test_another_number_of_processes_continues_with_as_many_row_groups(
    sizes: tuple[int, int], deed: dict[str, Any], cache: ActivationCache, some_by_two: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", config_of(*SOME, calibration={}, parallel=ROWS)
    stop_and_continue(sizes, deed, cache, out, config)
    expected, made = folder_bytes(some_by_two), folder_bytes(out)
    assert lines_of(out) == lines_of(some_by_two)
    assert [name for name in expected if "/sae/" in name and made[name] != expected[name]] == []


# One of each way in which rows are chosen: in each row, in the batch, for each latent, from a pool.
BY_MORE = ["topk", "mutual_choice", "feature_choice after mutual", "sampled", "matryoshka_batch_topk"]


@pytest.mark.slow
@pytest.mark.parametrize("groups", [3, 4])
def test_three_and_four_groups_train_what_one_process_does(
    groups: int, cache: ActivationCache, alone: Path, tmp_path: Path
) -> None:
    """128 rows are not a multiple of 3. A run that was killed has the bytes of one that was not."""
    variants = [settings_of(name) | {"name": name.replace(" ", "_")} for name in BY_MORE]
    config = config_of(*variants, parallel={"rows": groups})
    out, again = tmp_path / "run", tmp_path / "again"
    assert ends(train_with(groups, cache, out, config)) == ["well"] * groups
    for name in (variant["name"] for variant in variants):
        ours, expected = (load_file(run / name / "sae" / "weights.safetensors") for run in (out, alone))
        assert ours.keys() == expected.keys()
        for tensor, values in expected.items():
            torch.testing.assert_close(ours[tensor], values, rtol=1e-6, atol=1e-6, msg=f"{name}: {tensor}")
    stop_and_continue((groups, groups), {"rank": groups - 1, "signal": "SIGKILL"}, cache, again, config)
    assert lines_of(again) == lines_of(out)
    expected_bytes, made = folder_bytes(out), folder_bytes(again)
    assert [name for name in expected_bytes if "/sae/" in name and made[name] != expected_bytes[name]] == []


def test_another_number_of_row_groups_is_another_run(cache: ActivationCache, tmp_path: Path) -> None:
    out, sae = tmp_path / "run", {"kind": "topk", "k": 4}
    run(config_of(sae), cache, out)
    first, second = train_with(2, cache, out, config_of(sae, parallel=ROWS))
    assert (first["ended"], second["ended"]) == ("UsageError", "OtherProcessError")
    assert "holds another run" in first["message"] and "parallel" in first["message"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_the_traffic_of_a_step(size: int, cache: ActivationCache, tmp_path: Path) -> None:
    """docs/cluster.md has the large terms: gradients to their owners, and weights back."""
    batch_rows, k, steps, sharing = 128, 5, 2, size // 2  # processes that share the latents
    config = config_of(
        {"kind": "topk", "k": k, "auxk": None},
        steps=6, log={"every_steps": 6}, checkpoint={"every_steps": 6}, parallel=ROWS,
    )  # fmt: skip
    found = train_with(size, cache, tmp_path / "run", config, watch=[2, 2 + steps])
    rows, held, owned, units = batch_rows // 2, LATENTS // sharing, LATENTS // size, LATENTS // 64
    per_latent = 4 * (2 * D_MODEL + 1)  # of both matrices and b_enc
    gradients, weights = (held - owned) * (per_latent + 4), owned * per_latent  # and through_encoder
    statistics = 8 * held + (8 + 8 * rows) + 8 * 2 + 4 * D_MODEL  # firing; row_l0; loss, error; b_dec
    variance = 8 * (2 + D_MODEL)  # of the rows, for FVU
    over_rows = gradients + weights + statistics + variance + 8  # and whether all numbers are finite
    through_encoder, norms = 4 * D_MODEL * units // size, 8 * 3 * owned
    over_all = through_encoder + norms + 2 * 8  # and stop; still running
    over_latents = 0
    if sharing > 1:
        candidates, counts = 4 * rows * k, 8 * rows
        over_latents = candidates + counts + 4 * 8  # and finite; room; twice whether there are many pairs
    for rank, one in enumerate(found):
        sums = 4 * rows * D_MODEL if sharing > 1 else 0  # one receiver, whether the next one or the other
        expected = over_rows + (size - 1) * over_all + (sharing - 1) * over_latents + sums
        assert one["traffic"] == steps * expected, f"process {rank}"


@pytest.mark.slow
def test_a_variant_that_diverges_for_some_rows_stops_in_all(cache: ActivationCache, tmp_path: Path) -> None:
    config = config_of({"kind": "topk", "k": 4}, {"kind": "batch_topk", "k": 4}, parallel=ROWS)
    found = train_with(2, cache, tmp_path / "run", config, rank=1, step=3, poisoned=3)
    assert ends(found) == ["well"] * 2
    assert found[0]["failed"] == found[1]["failed"]
    (reason,) = found[0]["failed"].values()
    assert "latent 3 is NaN" in reason and "step 4" in reason


@pytest.mark.slow
def test_a_full_disk_of_one_process_ends_all(
    cache: ActivationCache, some_by_two: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", config_of(*SOME, calibration={}, parallel=ROWS)
    first, second = train_with(2, cache, out, config, rank=1, step=4, full=True)
    assert (first["ended"], second["ended"]) == ("OtherProcessError", "SaecacheError")
    assert "No space left" in second["message"]
    assert ends(train_with(2, cache, out, config)) == ["well"] * 2
    assert_same_run(out, some_by_two)
