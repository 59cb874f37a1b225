from typing import ClassVar

import torch

from saecache.train.backends.choice import backend_of, load_backend
from saecache.train.backends.plain import backend as plain
from saecache.train.backends.protocol import Backend

from ..backend_contract import BackendContract


class TestPlain(BackendContract):
    name: ClassVar[str] = "plain"


def test_other_dtypes_use_the_plain_backend(pairs, normal):
    W_dec = normal(90, 20).double()
    doubled = pairs.with_value(pairs.value.double())
    backend: Backend = plain
    assert backend_of(W_dec) is backend is load_backend("plain")
    torch.testing.assert_close(backend.decode(doubled, W_dec), doubled.to_dense() @ W_dec)
