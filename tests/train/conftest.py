"""Small synthetic caches and runs, and products that are rounded on purpose."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from saecache.store.reading.reader import ActivationCache
from saecache.testing.sparse_rows import small_run, write_cache_of_two_hooks, write_sparse_cache
from saecache.train import TrainConfig
from saecache.train.backends import sources
from saecache.train.backends.plain import screening
from saecache.train.backends.plain.products import matmul


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """3000 rows of width 24, about a tenth of them held out."""
    return write_sparse_cache(tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture(scope="session")
def cache_of_two_hooks(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """The rows of ``cache`` under ``resid``, and under ``out`` [16] a function of them with some noise."""
    return write_cache_of_two_hooks(tmp_path_factory.mktemp("cache") / "two")


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ActivationCache]:
    return lambda **options: write_sparse_cache(tmp_path_factory.mktemp("cache") / "cache", **options)


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """See :func:`small_run`."""
    return small_run


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
        def rounded(
            a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None, **slices: Any
        ) -> torch.Tensor:
            return matmul(with_fewer_bits(a, bits, cut=cut), with_fewer_bits(b, bits, cut=cut), out, **slices)

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
