from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import torch

from saecache.train.backends.choice import backend_of, load_backend
from saecache.train.backends.plain import backend as plain
from saecache.train.backends.protocol import Backend

from ..backend_contract import BackendContract


class TestPlain(BackendContract):
    name: ClassVar[str] = "plain"
    products: ClassVar[tuple[str, ...]] = ("high", "medium", "tf32", "tf32, cut", "bfloat16", "bfloat16, cut")

    @pytest.fixture
    def change_product(
        self, monkeypatch: pytest.MonkeyPatch, round_products: Callable[[int, bool], None]
    ) -> Iterator[Callable[[str], None]]:
        """Settings of torch, and products that read as few bits as those of other devices."""
        before = torch.get_float32_matmul_precision()

        def change(name: str) -> None:
            if name in ("high", "medium"):
                torch.set_float32_matmul_precision(name)
            else:
                round_products(10 if name.startswith("tf32") else 7, name.endswith("cut"))

        yield change
        torch.set_float32_matmul_precision(before)


def test_other_dtypes_use_the_plain_backend(pairs, normal):
    W_dec = normal(90, 20).double()
    doubled = pairs.with_value(pairs.value.double())
    backend: Backend = plain
    assert backend_of(W_dec) is backend is load_backend("plain")
    torch.testing.assert_close(backend.decode(doubled, W_dec), doubled.to_dense() @ W_dec)
