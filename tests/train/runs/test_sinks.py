"""``sink_ratio``: rows of huge norm never reach training, and everything else stays as it was."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.store.reading.reader import ActivationCache, open_cache
from saecache.store.writing.writer import CacheWriter
from saecache.testing.run_folders import metrics, rewind, run_bytes
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, run
from saecache.train.engine.feed import batches
from saecache.train.runs.planning import plan_run

TOPK = {"kind": "topk", "k": 4}
CPU = torch.device("cpu")
SINK = torch.nn.functional.normalize(torch.arange(24.0) - 11.5, dim=0)


@pytest.fixture(scope="module")
def sunk(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """Every tenth row is a sink: 50 times as long, all in one direction."""
    rows = sparse_rows(3000, 24, 0)
    rows[::10] = 50 * float(rows.norm(dim=1).median()) * SINK + 0.01 * rows[::10]
    path = tmp_path_factory.mktemp("sinks") / "cache"
    with CacheWriter(path, hooks={"resid": 24}, identity={}, heldout_fraction=0.1) as writer:
        writer.write_rows({"resid": rows})
    return open_cache(path)


def is_sink(x: torch.Tensor) -> torch.Tensor:
    return x @ SINK > 0.99


def test_batches_stay_full_and_hold_no_sink(
    sunk: ActivationCache, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(TOPK, sink_ratio=10, steps=None, epochs=2)
    plan = plan_run(config, sunk)
    norms = sunk.rows("resid", np.arange(len(sunk)), normalization="none").norm(dim=1)
    assert plan.rows == int((norms < 10 * norms.median()).sum()) < len(sunk)
    assert plan.num_steps == 2 * (plan.rows // 256)
    seen = [x.clone() for x in batches(config, sunk, "resid", CPU, 0, plan.num_steps)]
    assert {tuple(x.shape) for x in seen} == {(256, 24)}
    assert not any(bool(is_sink(x).any()) for x in seen)
    late = list(batches(config, sunk, "resid", CPU, 5, plan.num_steps))
    assert all(torch.equal(a, b) for a, b in zip(late, seen[5:], strict=True))
    plain = next(batches(make_config(TOPK), sunk, "resid", CPU, 0, 1))
    assert 10 < int(is_sink(plain).sum()) < 45


def test_a_run_is_exact_over_an_interruption_and_measures_the_same_rows(
    sunk: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(TOPK, sink_ratio=10, steps=12)
    run(config, sunk, tmp_path / "a")
    run(config, sunk, tmp_path / "b")
    assert run_bytes(tmp_path / "a") == run_bytes(tmp_path / "b")
    rewind(tmp_path / "b", "topk_k4", to_step=9)
    run(config, sunk, tmp_path / "b")
    assert run_bytes(tmp_path / "a") == run_bytes(tmp_path / "b")


def test_sinks_are_left_out_of_measurements(
    sunk: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run(make_config(TOPK, sink_ratio=10, steps=60), sunk, tmp_path / "without")
    run(make_config(TOPK, steps=60), sunk, tmp_path / "with")
    without, with_sinks = (metrics(tmp_path / name)[-1]["heldout_fvu"] for name in ("without", "with"))
    assert with_sinks < without, "sinks are easy, and variance"


def test_too_few_rows_left(sunk: ActivationCache, make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(
        UsageError, match=r"batch_rows=2600 is more than the \d+ training rows that sink_ratio=10 leaves"
    ):
        plan_run(make_config(TOPK, sink_ratio=10, batch_rows=2600), sunk)
