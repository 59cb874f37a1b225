"""The screening product is the fastest one that keeps its bounds, if these are narrow enough."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from saecache.train.backends.bounds import ErrorBounds
from saecache.train.backends.compiled.selection import cheapest_product as module
from saecache.train.backends.compiled.selection.cheapest_product import added_candidates, cheapest_product


@pytest.fixture(autouse=True)
def no_memory():
    yield
    module._fastest.cache_clear()


def taking(monkeypatch, **seconds: float) -> None:
    module._fastest.cache_clear()
    monkeypatch.setattr(module, "_seconds", lambda width: seconds)
    monkeypatch.setattr(module, "ROWS", 64)
    monkeypatch.setattr(module, "LATENTS", 512)


def isotropic(latents: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(n, 64, generator=generator) for n in (100, latents))
    return x, W, torch.zeros(latents)


def test_small_encoders_are_not_tried(monkeypatch):
    taking(monkeypatch, float32=3.0, bfloat16=1.0, int8=9.0)
    assert cheapest_product(*isotropic(1023), 32) == "float32"
    assert cheapest_product(*isotropic(1024), 32) == "bfloat16"


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        ((3.0, 1.0, 0.5), "int8"),
        ((3.0, 1.0, 0.9), "bfloat16"),
        ((3.0, 2.9, 1.0), "int8"),
        ((1.0, 1.0, 1.0), "float32"),
        ((1.0, 2.0, torch.inf), "float32"),
    ],
)
def test_the_clearly_fastest_is_used(monkeypatch, seconds, fastest):
    taking(monkeypatch, **dict(zip(("float32", "bfloat16", "int8"), seconds, strict=True)))
    assert module._fastest(32) == fastest


@pytest.mark.parametrize("product", ["bfloat16", "int8"])
def test_a_processor_that_breaks_the_bounds_is_not_used(monkeypatch, product):
    taking(monkeypatch, **{"float32": 3.0, "bfloat16": 9.0, "int8": 9.0, product: 1.0})
    assert module._fastest(32) == product
    module._fastest.cache_clear()
    real = module.factors

    @contextmanager
    def far_too_sure(*arguments):
        with real(*arguments) as ready:
            exact = replace(ready.x_norms, norm=ready.x_norms.norm * 0, error=ready.x_norms.error * 0)
            yield replace(ready, x_norms=exact)

    monkeypatch.setattr(module, "factors", far_too_sure)
    assert module._fastest(32) == "float32"


def test_a_processor_that_adds_up_in_sixteen_bits_is_not_used(monkeypatch):
    taking(monkeypatch, float32=3.0, bfloat16=9.0, int8=1.0)
    saturated = torch.zeros(module.ROWS, module.ROWS, dtype=torch.int32)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: saturated)
    assert module._fastest(32) == "float32"


def test_int8_is_used_only_if_its_bounds_are_narrow_enough(monkeypatch):
    """If one entry is far above the others, few codes are left for these."""
    taking(monkeypatch, float32=3.0, bfloat16=1.0, int8=0.1)
    x, W, b = isotropic(8192)
    assert added_candidates(x, W, b, 16) < 8192 / module.LATENTS_PER_CANDIDATE
    assert cheapest_product(x, W, b, 16) == "int8"
    assert cheapest_product(x, W, b, None) == "bfloat16"
    x[:, 7] = 1000.0
    W[:, 7] = 0.0
    assert cheapest_product(x, W, b, 16) == "bfloat16"


def test_candidates_are_counted(monkeypatch):
    """The estimate of the candidates that the bounds add is right within a factor."""
    x, W, b = isotropic(4096)
    with module.factors("int8", x, W) as ready:
        bounds: ErrorBounds = ready.bounds()
    pre = x @ W.T
    error = bounds.slack[:, None] * bounds.norm + bounds.relative * pre.abs()
    least = pre.topk(64, dim=1).values[:, -1:]
    wanted = float((pre + error >= least).sum() / len(x)) - 64
    assert 0.7 * wanted < added_candidates(x, W, b, 64) < 1.4 * wanted
