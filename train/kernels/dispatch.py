"""Which implementation runs: compiled loops for float32 in main memory, plain torch everywhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_only_torch: ContextVar[bool] = ContextVar("only_torch", default=False)


def use_compiled(*tensors: Tensor | None) -> bool:
    """True when all ``tensors`` are float32 rows in main memory that a compiled loop can walk over."""
    return not _only_torch.get() and all(
        t is None or (t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous())
        for t in tensors
    )


@contextmanager
def only_torch() -> Iterator[None]:
    """Inside, the plain torch implementations run everywhere: for comparisons, and to rule compiled code
    out.
    """
    token = _only_torch.set(True)
    try:
        yield
    finally:
        _only_torch.reset(token)
