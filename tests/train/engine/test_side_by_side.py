"""Variants side by side give the same bytes as one after the other, and failures come back in order."""

from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import run_bytes
from saecache.train import TrainConfig, run
from saecache.train.backends.choice import backend_of, load_backend, use_backend
from saecache.train.engine.reading import Source
from saecache.train.engine.side_by_side import MOST_BYTES, MOST_WEIGHTS, num_side_by_side, run_each_variant
from saecache.train.engine.trainee import DivergedError
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num_variants", "num_threads", "together"), [
    (1, 2, 0), (2, 2, 2), (3, 2, 2), (5, 2, 4), (5, 4, 4), (3, 4, 0), (4, 1, 0),
])  # fmt: skip
def test_only_full_rounds_of_threads(
    threads: Callable[[int], None], num_variants: int, num_threads: int, together: int
) -> None:
    threads(num_threads)
    assert num_side_by_side(num_variants, 100, torch.zeros(4, 3)) == together
    large = torch.zeros(1).expand(MOST_BYTES // 8 + 1, 2)
    assert num_side_by_side(num_variants, 100, large) == 0, "each would need a copy of the rows"
    assert num_side_by_side(num_variants, MOST_WEIGHTS + 1, torch.zeros(4, 3)) == 0


def test_every_kind_ends_with_the_same_bytes(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    threads: Callable[[int], None],
) -> None:
    variants = [
        {"kind": kind} | ({"k": 4} if "k" in VARIANTS[kind].model_fields else {}) for kind in sorted(VARIANTS)
    ]
    config = make_config(*variants, steps=4)
    for number in (1, 2, 4):
        threads(number)
        run(config, cache, tmp_path / str(number))
    one_by_one = run_bytes(tmp_path / "1")
    assert len(one_by_one) > 4 * len(variants)
    assert run_bytes(tmp_path / "2") == one_by_one
    assert run_bytes(tmp_path / "4") == one_by_one


def test_variants_run_on_threads_of_their_own(threads: Callable[[int], None]) -> None:
    threads(2)
    seen: dict[Any, tuple[int, int, Any]] = {}

    plan = Plan(d_model=3, num_latents=9, batch_rows=4, num_steps=1)
    trainees: Any = [SimpleNamespace(name=name, plan=plan, shards=plan.shards) for name in "abcde"]

    def work(trainee: Any) -> None:
        assert not torch.is_grad_enabled()
        seen[trainee.name] = get_ident(), torch.get_num_threads(), backend_of(torch.zeros(1))
        if trainee.name in "db":
            raise DivergedError(trainee.name, 0)

    with torch.no_grad(), use_backend("plain"):
        failed = run_each_variant(
            trainees, work, {Source(hook="", normalization=None, width=3): torch.zeros(4, 3)}
        )
    assert [(trainee.name, str(error)) for trainee, error in failed] == [("b", "b"), ("d", "d")]
    assert all(number == 1 for name, (_, number, _) in seen.items() if name != "e")
    assert seen["e"][0] == get_ident() and seen["e"][1] == 2
    assert get_ident() not in {thread for name, (thread, *_) in seen.items() if name != "e"}
    chosen = [backend for *_, backend in seen.values()]
    assert all(backend is load_backend("plain") for backend in chosen), "the caller's context holds there too"
