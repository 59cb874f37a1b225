"""The contract of all backends, in Triton's interpreter."""

from typing import ClassVar

import pytest

from saecache.train.pairs import Pairs

from ..backend_contract import BackendContract


@pytest.fixture
def pairs(pairs: Pairs) -> Pairs:
    """Of the two that hold thousands of pairs a part of the rows, since the interpreter is slow."""
    return pairs if len(pairs) < 1000 else pairs.slice_rows(36, 60)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter, about NaN and infinity
class TestTriton(BackendContract):
    name: ClassVar[str] = "triton"
