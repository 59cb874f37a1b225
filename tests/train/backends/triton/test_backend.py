"""The contract of all backends, in Triton's interpreter."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from saecache.common import devices
from saecache.train.backends import triton
from saecache.train.pairs import Pairs

from ..backend_contract import BackendContract


@pytest.fixture
def pairs(pairs: Pairs) -> Pairs:
    """Of the two that hold thousands of pairs a part of the rows, since the interpreter is slow."""
    return pairs if len(pairs) < 1000 else pairs.slice_rows(36, 60)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter, about NaN and infinity
class TestTriton(BackendContract):
    name: ClassVar[str] = "triton"
    products: ClassVar[tuple[str, ...]] = ()  # the screen is a kernel of its own, not torch's product
    block_sizes: ClassVar[tuple[int, ...]] = (5,)


def test_each_gpu_is_asked_whether_it_has_the_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {torch.device("cuda:0"): (9, 0), torch.device("cuda:1"): (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    devices.runs_triton.cache_clear()
    served = [
        triton.serves(SimpleNamespace(device=device, dtype=dtype))  # type: ignore[arg-type]
        for device in capabilities
        for dtype in (torch.float32, torch.float64)
    ]
    devices.runs_triton.cache_clear()
    assert served == [True, False, False, False]
    assert not triton.serves(torch.zeros(1))
