"""The optimizer's pass against the CPU's."""

from typing import Any

import pytest
import torch

from saecache.train.backends.compiled import backend as cpu
from saecache.train.backends.plain import backend as plain
from saecache.train.backends.protocol import AdamSettings
from saecache.train.backends.triton import backend as triton_backend
from saecache.train.backends.triton.adam import adam_numbers, adam_step, clip, global_norm, gradient_norm
from saecache.train.backends.triton.rounding import round_latents

from .cases import assert_close, numbers

F, D = 21, 30
CPU = torch.device("cpu")


def settings(**changed: float) -> AdamSettings:
    known = {
        "learning_rate": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "gradient_scale": 0.5,
    }
    return AdamSettings(**{**known, **changed})


def float64(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def tensors(*shape: int) -> list[torch.Tensor]:
    p, g = numbers(*shape, seed=1, whole=False), numbers(*shape, seed=2, whole=False)
    m, v = numbers(*shape, seed=3, whole=False) * 0.1, numbers(*shape, seed=4, whole=False).square() * 0.1
    return [torch.nn.functional.normalize(p, dim=-1), g, m, v]


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize(("shape", "unit"), [((F, D), True), ((F, D), False), ((2500,), False)])
def test_steps_are_the_cpus(shape: tuple[int, ...], unit: bool, decoupled: bool) -> None:
    got, want = tensors(*shape), tensors(*shape)
    for step in (1, 2, 1000):
        adam_step(*got, step, settings(decoupled=decoupled), unit_rows=unit)
        cpu.adam_step(*want, step, settings(decoupled=decoupled), unit_rows=unit)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, whole=False)


def test_what_changes_is_read_from_the_device() -> None:
    got, want = tensors(F, D), tensors(F, D)
    scale = clip(float64(8.0), 2.0, float64(0.0)[0])
    ready = adam_numbers(
        settings(learning_rate=9.0),
        torch.tensor(5),
        CPU,
        learning_rate=torch.tensor(0.02),
        gradient_scale=scale,
    )
    adam_step(*got, 99, settings(), numbers=ready)
    cpu.adam_step(*want, 5, settings(learning_rate=0.02, gradient_scale=2.0 / (8.0 + 1e-6)))
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, whole=False)


@pytest.mark.parametrize("unit", [True, False])
def test_the_rows_of_the_next_screen_are_refreshed(unit: bool) -> None:
    some = tensors(F, D)
    rows = round_latents(some[0])
    adam_step(*some, 1, settings(), unit_rows=unit, refresh=rows)
    fresh = round_latents(some[0])
    assert torch.equal(rows.rounded, fresh.rounded)
    assert torch.equal(rows.rounded, some[0].bfloat16())
    assert_close(rows.factor, fresh.factor, whole=False)
    assert_close(rows.norm, fresh.norm, whole=False)


@pytest.mark.parametrize("unit", [True, False])
def test_norms_are_the_cpus(unit: bool) -> None:
    p, g, *_ = tensors(F, D)
    other = p if unit else None
    assert float(gradient_norm(g, other)) == pytest.approx(float(cpu.gradient_norm(g, other)), rel=1e-6)
    assert gradient_norm(g, other).dtype == torch.float64
    g[3, 4] = torch.nan
    assert not bool(gradient_norm(g, other).isfinite())


@pytest.mark.parametrize(("shape", "unit"), [((F, D), True), ((F, D), False), ((2500,), False)])
def test_a_scale_that_is_nan_changes_nothing(shape: tuple[int, ...], unit: bool) -> None:
    some, before = tensors(*shape), tensors(*shape)
    rows = round_latents(some[0]) if len(shape) == 2 else None
    kept = None if rows is None else rows.rounded.clone()
    adam_step(*some, 3, settings(gradient_scale=torch.nan), unit_rows=unit, refresh=rows)
    assert all(torch.equal(one, other) for one, other in zip(some, before, strict=True))
    assert rows is None or torch.equal(rows.rounded, kept)


def test_several_norms_together() -> None:
    p, g, *_ = tensors(F, D)
    pairs = [(g, None), (g[0], None), (g, p)]
    assert float(global_norm(pairs)) == pytest.approx(float(plain.global_norm(pairs)), rel=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("backend", [triton_backend, plain])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_one_bad_figure_stops_all_later_steps(backend: Any, place: int, bad: float) -> None:
    good, unsound = float64(1.0, 2.0, 4.0), float64(0.0)[0]
    assert float(backend.clip(good, 1.0, unsound)) == pytest.approx(0.25, rel=1e-6)
    wrong = good.clone()
    wrong[place] = bad
    assert bool(backend.clip(wrong, 1.0, unsound).isnan())
    assert bool(backend.clip(good, 1.0, unsound).isnan()), "it stays stopped"
    assert bool(backend.clip(good, None, unsound).isnan())


def test_clipping_leaves_small_gradients_alone() -> None:
    assert float(clip(float64(0.5), 1.0, float64(0.0)[0])) == 1.0
    assert float(clip(float64(5.0), None, float64(0.0)[0])) == 1.0


def test_gradients_may_be_views_with_gaps() -> None:
    got, want = tensors(F, D), tensors(F, D)
    view = torch.full((F, 2 * D), 9.0)[:, ::2]
    view.copy_(got[1])
    for unit_rows_of in (None, got[0]):
        assert torch.equal(gradient_norm(view, unit_rows_of), gradient_norm(want[1], unit_rows_of))
    got[1] = view
    adam_step(*got, 1, settings())
    adam_step(*want, 1, settings())
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    with pytest.raises(ValueError, match="without gaps"):
        adam_step(view, *want[1:], 1, settings())
