"""How processes are divided among the latents, the rows and the SAEs of a run."""

from collections.abc import Callable
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.distributed.group import Group
from saecache.distributed.launch import World
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig
from saecache.train.runs.layout import Layout, ParallelConfig, choose_layout, choose_rows, step_traffic
from saecache.train.runs.planning import plan_run, plans_of
from saecache.train.variants.base.variant import Plan
from saecache.train.variants.topk import TopK

PAIR = Group(ranks=(0, 1))
ROWS_SHARED = Layout(everyone=PAIR, row_group=PAIR, grid=PAIR)
TOPK = {"kind": "topk", "k": 4}


def plan(**sizes: int) -> Plan:
    return Plan(**{"d_model": 64, "num_latents": 4096, "batch_rows": 1024, "num_steps": 1, **sizes})


def world_of(size: int) -> World:
    return World(Group(ranks=tuple(range(size))))


def test_what_sends_less_is_divided() -> None:
    latents, reason = choose_rows([plan(num_latents=1 << 20)], 8)
    assert latents == 1
    assert "parallel.rows=1 sends least" in reason and "rows=8:" in reason
    assert choose_rows([plan(batch_rows=1 << 20)], 8)[0] == 8
    assert choose_rows([plan(batch_rows=2, num_latents=64)], 8)[0] <= 2
    assert choose_rows([plan()], 1)[0] == 1


def test_traffic_grows_with_what_is_exchanged() -> None:
    rows_only = 8 * 4096 * (64 + 64) * 3 / 4
    assert step_traffic(plan(), latents=1, rows=4) == rows_only
    assert step_traffic(plan(batch_rows=1 << 20), latents=1, rows=4) == rows_only
    assert step_traffic(plan(), latents=4, rows=1) == 1024 * (8 * 64 + 4 * 32 * 3)
    assert step_traffic(plan(), latents=1, rows=1) == 0


@pytest.mark.parametrize(("size", "settings"), [
    (1, {"rows": 2}),
    (4, {"rows": 3}),
    (4, {"rows": 2, "latents": 1}),
    (4, {"rows": "auto", "latents": 3}),
    (4, {"rows": 2, "variants": 4}),
])  # fmt: skip
def test_a_number_of_processes_that_is_not_asked_for_is_refused(size: int, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"processes, and there are {size}: start as many"):
        choose_layout(ParallelConfig(**settings), 4, world_of(size), list)


def test_one_process_may_choose_by_itself() -> None:
    layout = choose_layout(ParallelConfig(rows="auto"), 1, world_of(1), lambda: [plan()])
    assert (layout.group.size, layout.row_group.size) == (1, 1)


def test_rows_belong_to_the_processes_in_order() -> None:
    parts = [plan(batch_rows=10, row_group=Group(rank=rank, ranks=(0, 1, 2))).own_rows for rank in range(3)]
    assert [number for part in parts for number in range(10)[part]] == list(range(10))
    assert {len(range(10)[part]) for part in parts} == {3, 4}


def test_a_kind_that_expects_all_rows_is_refused(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_run(make_config(TOPK), cache, ROWS_SHARED).jobs
    monkeypatch.setattr(TopK, "shares_rows", False)
    assert plan_run(make_config(TOPK), cache).jobs
    with pytest.raises(UsageError, match="the kind topk does not say that its rule is the same then"):
        plan_run(make_config(TOPK), cache, ROWS_SHARED)


def test_too_few_rows_or_latents_are_refused(
    cache: ActivationCache, make_config: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(UsageError, match=r"parallel.rows=2 is more than the batch_rows=1"):
        plan_run(make_config(TOPK, batch_rows=1), cache, ROWS_SHARED)
    many = Group(ranks=tuple(range(3)))
    with pytest.raises(UsageError, match="3 processes cannot share an SAE of 96 latents, which come in 2"):
        plan_run(make_config(TOPK), cache, Layout(many, row_group=many, grid=many))


def test_moments_are_of_the_owners_alone(
    cache: ActivationCache, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(TOPK, num_latents=128)
    alone, shared = plan_run(config, cache).memory, plan_run(config, cache, ROWS_SHARED).memory
    assert (shared.weights, shared.gradients) == (alone.weights, alone.gradients)
    of_latents = 2 * 4 * 128 * (2 * cache.d_model(next(iter(cache.hooks))) + 1)
    assert alone.moments - shared.moments == of_latents // 2


def test_sizes_are_known_before_the_processes(
    cache: ActivationCache, make_config: Callable[..., TrainConfig]
) -> None:
    (found,) = plans_of(make_config(TOPK), cache)
    assert (found.num_latents, found.batch_rows) == (96, 256)
