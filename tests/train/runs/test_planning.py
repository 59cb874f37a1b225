"""Settings that do not fit the cache are found before the first step, and no file is left behind."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saecache.common.errors import UsageError
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig, run
from saecache.train.runs import planning
from saecache.train.runs.planning import plan_run

TOPK = {"kind": "topk", "k": 4}


@pytest.mark.parametrize(
    ("variants", "changes", "message"),
    [
        ([TOPK], {"hook": "resdi"}, "did you mean 'resid'"),
        (
            [TOPK],
            {"num_latents": "1e9"},
            r"training 1,000,000,000 latents of width 24 \(weights 183 GiB, gradients 183 GiB, "
            r"moments 365 GiB\) takes 730 GiB of memory, and .* are available on cpu: lower num_latents",
        ),
        ([TOPK, {**TOPK, "k": 5}], {"num_latents": 10**12}, "or train fewer variants at a time"),
        (
            [{"kind": "feature_choice", "k": 4}],
            {"expansion_factor": 10**9, "num_latents": None},
            "available on cpu",
        ),
        ([TOPK], {"batch_rows": 5000}, r"batch_rows=5000 is more than the \d+ training rows"),
        ([TOPK], {"steps": None, "num_rows": 100}, "shorter than one batch of 256 rows"),
        ([{"kind": "topk", "k": 96}], {}, "variant topk_k96: k=96 must be smaller"),
        ([{"kind": "batch_topk", "k": 200}], {}, "k=200 must be smaller"),
        (
            [{"kind": "feature_choice", "k": 100}],
            {},
            "k=100 must be smaller than the number of latents, 96: lower k",
        ),
        ([{"kind": "feature_choice", "k": 1}], {"batch_rows": 50}, "set batch_rows to 96 or more"),
        (
            [{"kind": "batch_topk", "k": 4, "threshold": {"start_step": 8}}],
            {},
            "after the last of 8 steps",
        ),
        ([TOPK], {"expect": {"model": "gpt2"}}, "expect.model is gpt2, but the cache was harvested from toy"),
        ([TOPK], {"expect": {"fingerprint": "00000000"}}, "expect.fingerprint is 00000000, but the cache is"),
        ([TOPK], {"expect": {"fingerprint": "00"}}, "at least 8 characters"),
        ([TOPK], {"device": "abacus"}, "device='abacus' cannot be used here"),
        ([TOPK], {"log": {"wandb_project": "p"}}, r"pip install 'saecache\[wandb\]'"),
    ],
)
def test_what_cannot_work_is_reported(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    variants: list[dict[str, Any]],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        run(make_config(*variants, **changes), cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_problems_are_reported_at_once(
    cache: ActivationCache, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config({"kind": "topk", "k": 96}, {"kind": "batch_topk", "k": 97}, expect={"model": "gpt2"})
    with pytest.raises(UsageError, match=r"(?s)expect.model.*topk_k96.*batch_topk_k97"):
        plan_run(config, cache)


def test_several_hooks_need_a_choice(tmp_path: Path, make_config: Callable[..., TrainConfig]) -> None:
    import torch

    from saecache import CacheWriter, open_cache

    rows = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    with CacheWriter(tmp_path / "cache", hooks={"a": 4, "b": 4}, identity={}) as writer:
        writer.write_rows({"a": rows, "b": rows + 1})
    cache = open_cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="several hooks; set hook to one of a, b"):
        plan_run(make_config(TOPK), cache)
    assert plan_run(make_config(TOPK, hook="b"), cache).hook == "b"
    with pytest.raises(UsageError, match="no held-out rows"):
        plan_run(make_config({"kind": "batch_topk", "k": 2}, hook="b", calibration={}), cache)


def test_measuring_on_held_out_rows_is_off_where_there_are_none(
    tmp_path: Path, make_config: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """The shipped recipes set it, and a cache made from rows has no held-out rows unless asked for."""
    import torch

    from saecache import CacheWriter, load_sae, open_cache, train

    rows = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    with CacheWriter(tmp_path / "cache", hooks={"a": 4}, identity={}) as writer:
        writer.write_rows({"a": rows})
    config = make_config(TOPK, log={"every_steps": 2, "heldout_every_steps": 2})
    result = train(config, open_cache(tmp_path / "cache"), tmp_path / "run")
    assert "no held-out rows: heldout_fvu and heldout_l0 are not measured" in caplog.text
    assert not result.failed
    assert load_sae(next(iter(result.saes.values()))).encode(rows).shape[0] == 600


def test_widths_come_from_the_cache(cache: ActivationCache, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(TOPK, {**TOPK, "num_latents": 50}, num_latents=None, expansion_factor=3)
    plan = plan_run(config, cache)
    assert [job.plan.num_latents for job in plan.jobs] == [72, 50]
    assert {job.plan.d_model for job in plan.jobs} == {24}
    expected = make_config(TOPK, expect={"fingerprint": cache.fingerprint[:8], "model": "toy"})
    assert plan_run(expected, cache).hook == "resid"


def test_each_process_of_a_machine_trains_on_a_gpu_of_its_own(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def choose(name: str, *, float64: bool, local_rank: int | None) -> torch.device:
        asked.append(local_rank)
        return torch.device("cpu")

    monkeypatch.setattr(planning, "choose_device", choose)
    plan_run(make_config(TOPK), cache)
    monkeypatch.setattr(planning, "world", lambda: SimpleNamespace(number_of_gpu=3))
    plan_run(make_config(TOPK), cache)
    assert asked == [None, 3]
