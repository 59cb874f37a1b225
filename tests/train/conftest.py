"""Small synthetic caches: rows that are sparse combinations of more directions than dimensions."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.store.reading.reader import ActivationCache, open_cache
from saecache.store.writing.writer import CacheWriter
from saecache.train import TrainConfig
from saecache.train.backends import sources
from saecache.train.backends.plain import screening
from saecache.train.backends.plain.products import matmul

from .shapes import D_MODEL, D_OUT


def sparse_rows(num_rows: int, d_model: int, seed: int) -> torch.Tensor:
    """[num_rows, d_model]: about 4 of 4 * d_model directions in each row, some far more often than others."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * d_model, d_model, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    frequency = 1 / (torch.arange(4 * d_model) + 3.0)
    active = torch.rand(num_rows, 4 * d_model, generator=generator) < 4 * frequency / frequency.sum()
    strength = active * (0.5 + torch.rand(num_rows, 4 * d_model, generator=generator))
    noise = 0.02 * torch.randn(num_rows, d_model, generator=generator)
    return strength @ directions + noise + 0.2


def write_cache(path: Path, num_rows: int = 3000, d_model: int = D_MODEL, seed: int = 0) -> ActivationCache:
    with CacheWriter(
        path,
        hooks={"resid": d_model},
        identity={"source": f"synthetic {seed}", "model": {"name": "toy"}},
        heldout_fraction=0.1,
    ) as writer:
        writer.write_rows({"resid": sparse_rows(num_rows, d_model, seed)})
    return open_cache(path)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """3000 rows of width 24, about a tenth of them held out."""
    return write_cache(tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture(scope="session")
def cache_of_two_hooks(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """The rows of ``cache`` under ``resid``, and under ``out`` [16] a function of them with some noise."""
    rows = sparse_rows(3000, D_MODEL, 0)
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(D_MODEL, D_OUT, generator=generator)
    out = (rows @ weights).relu() + 0.05 * torch.randn(3000, D_OUT, generator=generator)
    path = tmp_path_factory.mktemp("cache") / "two"
    with CacheWriter(
        path,
        hooks={"resid": D_MODEL, "out": D_OUT},
        identity={"source": "synthetic 0 and a function of it", "model": {"name": "toy"}},
        heldout_fraction=0.1,
    ) as writer:
        writer.write_rows({"resid": rows, "out": out})
    return open_cache(path)


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ActivationCache]:
    return lambda **options: write_cache(tmp_path_factory.mktemp("cache") / "cache", **options)


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """A run of 8 steps of 256 rows that fits the small cache; keyword arguments change its settings."""

    def make(*variants: dict[str, Any], **settings: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "num_latents": 96,
            "batch_rows": 256,
            "steps": 8,
            "dead_after_rows": 700,
            "optimizer": {"learning_rate": 0.003},
            "checkpoint": {"every_steps": 3, "keep": 9},
            "log": {"every_steps": 2, "progress": False},
            "device": "cpu",
        }
        return TrainConfig.model_validate({"variants": list(variants), **defaults, **settings})

    return make


def with_fewer_bits(x: torch.Tensor, bits: int, *, cut: bool) -> torch.Tensor:
    """Float32 numbers with ``bits`` bits after the leading one: rounded to nearest, or the others cut off."""
    dropped = 23 - bits
    whole = x.contiguous().view(torch.int32)
    if not cut:
        whole = whole + (1 << dropped - 1) - 1 + (whole >> dropped & 1)
    return (whole >> dropped << dropped).view(torch.float32)


@pytest.fixture
def round_products(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """``round_products(bits, cut)``: matrix products of the plain backend read fewer bits from then on.

    torch does not say so, as for a device that ignores its settings: only the trial can show it.
    """

    def install(bits: int, cut: bool) -> None:
        def rounded(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
            return matmul(with_fewer_bits(a, bits, cut=cut), with_fewer_bits(b, bits, cut=cut), out)

        for module in (sources, screening):
            monkeypatch.setattr(module, "matmul", rounded)
        monkeypatch.setattr(screening, "_proven_error", functools.cache(screening._proven_error.__wrapped__))

    return install


@pytest.fixture(autouse=True)
def _no_gradients_left_on() -> Any:
    """The package neither relies on torch's global gradient switch nor changes it."""
    assert torch.is_grad_enabled()
    yield
    assert torch.is_grad_enabled()
