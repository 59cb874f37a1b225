"""Several batches per step: the gradient is that of the mean loss, and selections are made per batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import metrics, rewind, run_bytes
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, load_sae, run
from saecache.train.backends.gates import Draw
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.runs.initialisation import initial_parameters
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.rows import Batch
from saecache.train.variants.base.variant import Plan

TOPK = {"kind": "topk", "k": 4}
BY_ROW = {
    "topk": {"k": 4},
    "relu": {"l1": {"coefficient": 0.1}},
    "gated": {},
    "jumprelu": {},
    "multi_topk": {"k": 4},
}
NFM = {"k": 4, "aux_zipf": None, "auxk": None, "nfm": {"coefficient": 0.1}, "nfm_inf": {"coefficient": 0.1}}


def trainee(kind: str, settings: dict[str, Any], batch_rows: int, batches: int) -> Trainee:
    plan = Plan(d_model=24, num_latents=96, batch_rows=batch_rows, num_steps=8, batches_of_step=batches)
    variant = VARIANTS[kind].model_validate({"kind": kind, **settings})
    return Trainee(variant, plan, 0, OptimizerConfig(), initial_parameters(plan, 0, torch.full((24,), 0.1)))


def accumulated(one: Trainee, x: torch.Tensor) -> None:
    parts = x.chunk(one.plan.batches_of_step)
    with torch.no_grad():
        for number, part in enumerate(parts):
            centered = part - one.parameters["b_dec"]
            one.add_batch(centered, centered, 3, 700, number_in_step=number)


@pytest.mark.parametrize("kind", BY_ROW)
def test_rules_of_single_rows_have_the_gradient_of_one_large_batch(kind: str) -> None:
    x = sparse_rows(256, 24, 1)
    whole, parts = trainee(kind, BY_ROW[kind], 256, 1), trainee(kind, BY_ROW[kind], 64, 4)
    for one in (whole, parts):
        one.rows_since_active[::3] = 10_000  # so that auxiliary losses act
        accumulated(one, x)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(parts.gradients[name], gradient, rtol=1e-4, atol=1e-6)
    for one in (whole, parts):
        one.update(1.0)
    assert int(parts.optimizer.steps) == 1
    assert torch.equal(parts.rows_since_active, whole.rows_since_active)
    torch.testing.assert_close(parts.interval.losses, whole.interval.losses)
    active = [int(one.interval.tensors()["active"]) for one in (parts, whole)]
    assert active[0] == active[1] > 0


def test_a_batch_wide_rule_selects_in_each_batch() -> None:
    x = sparse_rows(256, 24, 1)
    x[:64] *= 5  # one batch over all would take nearly all of its pairs here
    parts = trainee("batch_topk", {"k": 4}, 64, 4)
    accumulated(parts, x)
    batch: Batch = parts._batch
    assert [int(l0.sum()) for l0 in batch.outcome.row_l0] == [256, 256, 256, 256]


def test_a_penalty_on_the_weights_is_added_once_per_step() -> None:
    x = sparse_rows(256, 24, 1)
    whole, parts = (trainee("mutual_choice", NFM, 256 // n, n) for n in (1, 4))
    for one in (whole, parts):
        accumulated(one, x)
    for name in ("nfm", "nfm_inf"):
        losses = (one._batch.outcome.losses[name] for one in (parts, whole))
        assert float(next(losses)) == pytest.approx(float(next(losses)))


def test_random_numbers_differ_between_the_batches_of_a_step() -> None:
    seen = []
    one = trainee("probabilistic_topk", {"k": 4}, 64, 2)
    original = Batch.draw

    def draw(self: Batch, *place: Any) -> Draw:
        drawn = original(self, *place)
        seed, batch, first_row, first_latent = drawn
        cpu = torch.device("cpu")
        seen.append(self.backend.random_uniform(seed, batch, first_row, 64, 100, cpu, first_latent))
        return drawn

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Batch, "draw", draw)
        accumulated(one, sparse_rows(128, 24, 1))
    assert len(seen) == 2 and float((seen[0] == seen[1]).float().mean()) < 0.01


@pytest.mark.parametrize("kind", ["topk", "feature_choice", "probabilistic_topk"])
def test_runs_count_steps_and_rows_and_resume_exactly(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path, kind: str
) -> None:
    config = make_config({"kind": kind, "k": 4}, batch_rows=128, accumulate_batches=2)
    result = run(config, cache, tmp_path / "a")
    (name,) = result.saes
    lines = metrics(tmp_path / "a")
    assert [line["rows"] for line in lines] == [512, 1024, 1536, 2048]
    assert load_sae(result.saes[name]).cfg.training["rows"] == 2048
    run(config, cache, tmp_path / "b")
    rewind(tmp_path / "b", name, to_step=3)
    run(config, cache, tmp_path / "b")
    assert run_bytes(tmp_path / "a") == run_bytes(tmp_path / "b")


def test_the_same_rows_as_one_large_batch(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """TopK learns the same from an epoch of 3 large batches as from 6 small ones, two per step."""
    large = run(make_config(TOPK, steps=3), cache, tmp_path / "large").saes["topk_k4"]
    small = make_config(TOPK, steps=3, batch_rows=128, accumulate_batches=2)
    parts = run(small, cache, tmp_path / "small").saes["topk_k4"]
    torch.testing.assert_close(load_sae(parts).W_dec, load_sae(large).W_dec, rtol=1e-3, atol=1e-4)


def test_lengths_in_rows_and_epochs(cache: ActivationCache, make_config: Callable[..., TrainConfig]) -> None:
    from saecache.train.runs.planning import plan_run

    per_epoch = len(cache) // 100
    config = make_config(TOPK, steps=None, epochs=2, batch_rows=100, accumulate_batches=4)
    assert plan_run(config, cache).num_steps == round(2 * per_epoch / 4)
    config = make_config(TOPK, steps=None, num_rows=1999, batch_rows=100, accumulate_batches=4)
    assert plan_run(config, cache).num_steps == 4


def test_a_failure_names_its_batch(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Step 2 made the weights huge; the first batch of step 3 is batch 4 of the run, of 21 in an epoch."""
    wild = {**TOPK, "name": "wild", "optimizer": {"learning_rate": 1e37}}
    config = make_config(
        TOPK, wild, batch_rows=128, accumulate_batches=2, checkpoint={"every_steps": 1, "keep": 9}
    )
    result = run(config, cache, tmp_path / "run")
    assert list(result.saes) == ["topk_k4"]
    step = int(result.failed["wild"].partition("in step ")[2].split()[0])
    assert f"(batch {2 * (step - 1)} of epoch 0)" in result.failed["wild"] and step > 1
    last_good = tmp_path / "run" / "wild" / "checkpoints" / f"step_{step - 1:08d}"
    assert load_sae(last_good).cfg.training["step"] == step - 1


def test_when_all_fail_in_the_first_batch_of_a_step(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(TOPK, optimizer={"learning_rate": 1e37}, batch_rows=128, accumulate_batches=2)
    result = run(config, cache, tmp_path / "run")
    assert list(result.failed) == ["topk_k4"] and not result.saes
