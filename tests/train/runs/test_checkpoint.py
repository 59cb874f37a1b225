"""Which checkpoints are kept, from which one a run continues, and which ones are refused."""

import json
from pathlib import Path

import pytest
import torch

from saecache.common.errors import SaecacheError
from saecache.common.fvu import RowVariance
from saecache.testing.stepping import take_step
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.loading import load_sae
from saecache.train.runs.checkpoint import (
    failure_before,
    forget_failure,
    load_checkpoint,
    prune,
    record_failure,
    resume_steps,
    save_checkpoint,
    saved_steps,
)
from saecache.train.sae import SAE
from saecache.train.sae_config import SAEConfig
from saecache.train.variants.base.variant import Plan, Variant
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.topk import TopK

PLAN = Plan(d_model=6, num_latents=12, batch_rows=32, num_steps=9)


def trained(variant: Variant, steps: int, seed: int = 0, silent: int = 0) -> tuple[Trainee, RowVariance]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=1)
    parameters = {"W_enc": W.clone(), "W_dec": W, "b_enc": torch.zeros(12), "b_dec": torch.zeros(6)}
    parameters["b_enc"][:silent] = -9  # never active: dead after two batches
    trainee = Trainee(variant, PLAN, seed, OptimizerConfig(learning_rate=0.01), parameters)
    inputs = RowVariance(6, torch.device("cpu"))
    with torch.no_grad():
        for step in range(steps):
            x = torch.randn(32, 6, generator=generator)
            inputs.add(x)
            take_step(trainee, x, step, 1.0, dead_after_rows=40)
    return trainee, inputs


def sae_of(trainee: Trainee) -> SAE:
    variant = trainee.variant
    cfg = SAEConfig(
        kind=variant.kind,
        name="a",
        d_model=6,
        num_latents=12,
        k=2,
        inference=variant.inference,
        hook="x",
        normalization={"kind": "none", "d_model": 6, "scale": 1.0},
        variant=variant,
        cache={},
        training={},
    )
    return SAE(cfg, {**trainee.parameters, **variant.inference_tensors(trainee.state)})


def test_everything_that_training_changes_comes_back(tmp_path: Path) -> None:
    trainee, inputs = trained(BatchTopK(k=2), 4, silent=1)
    assert trainee.interval.losses.keys() == {"mse", "auxk"}
    save_checkpoint(tmp_path, 4, trainee, sae_of(trainee), inputs)
    fresh, fresh_inputs = trained(BatchTopK(k=2), 0, seed=1)
    load_checkpoint(tmp_path, 4, fresh, fresh_inputs)
    for group, tensors in trainee.tensors().items():
        again = fresh.tensors()[group]
        assert tensors.keys() == again.keys()
        assert all(torch.equal(tensors[name], again[name]) for name in tensors), group
    assert all(
        torch.equal(a, b)
        for a, b in zip(inputs.tensors().values(), fresh_inputs.tensors().values(), strict=True)
    )
    loaded = load_sae(tmp_path / "checkpoints" / "step_00000004")
    assert torch.equal(loaded.W_dec, trainee.parameters["W_dec"]) and loaded.threshold is not None


def test_a_checkpoint_of_another_variant_is_refused(tmp_path: Path) -> None:
    trainee, inputs = trained(BatchTopK(k=2), 1)
    save_checkpoint(tmp_path, 1, trainee, sae_of(trainee), inputs)
    other, other_inputs = trained(TopK(k=2), 0)
    with pytest.raises(SaecacheError, match=r"threshold_sum"):
        load_checkpoint(tmp_path, 1, other, other_inputs)


def test_saving_again_replaces_what_a_kill_left(tmp_path: Path) -> None:
    trainee, inputs = trained(TopK(k=2), 1)
    torn = tmp_path / "checkpoints" / "step_00000001.tmp"
    torn.mkdir(parents=True)
    (torn / "junk").write_text("half")
    for _ in range(2):
        save_checkpoint(tmp_path, 1, trainee, sae_of(trainee), inputs)
    assert saved_steps(tmp_path) == [1] and not torn.exists()
    names = sorted(p.name for p in (tmp_path / "checkpoints" / "step_00000001").iterdir())
    assert names == ["cfg.json", "progress.json", "training.safetensors", "weights.safetensors"]


def folders_with(tmp_path: Path, steps: dict[str, list[int]], failed: dict[str, int]) -> list[Path]:
    for name, saved in steps.items():
        (tmp_path / name).mkdir()
        for step in saved:
            (tmp_path / name / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        if name in failed:
            record_failure(tmp_path / name, failed[name], "NaN")
    return [tmp_path / name for name in steps]


@pytest.mark.parametrize(
    ("steps", "failed", "expected"),
    [
        ({"a": [], "b": []}, {}, 0),
        ({"a": [10, 20], "b": [10, 20]}, {}, 20),
        ({"a": [10, 20], "b": [10]}, {}, 10),
        ({"a": [20], "b": [10]}, {}, 0),
        ({"a": [10, 20], "b": [10]}, {"b": 13}, 20),
        ({"a": [10, 20], "b": [10]}, {"b": 25}, 10),
        ({"a": [10, 20], "b": []}, {"b": 3}, 20),
        ({"a": [10], "b": [20]}, {"a": 15}, 20),
    ],
)
def test_where_a_run_goes_on(
    tmp_path: Path, steps: dict[str, list[int]], failed: dict[str, int], expected: int
) -> None:
    steps_found = resume_steps(folders_with(tmp_path, steps, failed), num_steps=99)
    assert next(iter(steps_found), 0) == expected


def test_old_checkpoints_and_torn_ones_go(tmp_path: Path) -> None:
    (folder,) = folders_with(tmp_path, {"a": [1, 2, 3, 4]}, {})
    (folder / "checkpoints" / "step_00000005.tmp").mkdir()
    prune(folder, keep=2, step=4)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_00000003", "step_00000004"]


def test_a_failure_counts_from_the_step_after_it(tmp_path: Path) -> None:
    record_failure(tmp_path, 7, "NaN")
    assert [failure_before(tmp_path, step) for step in (7, 8)] == [None, "NaN"]
    assert json.loads((tmp_path / "failed.json").read_text()) == {"step": 7, "reason": "NaN"}
    forget_failure(tmp_path)
    forget_failure(tmp_path)
    assert failure_before(tmp_path, 8) is None
