"""The number type and the device that torch gives tensors unless told otherwise, as in a new process."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """New tensors are float32 and in main memory inside the block, whatever the caller has set for torch."""
    with ExitStack() as stack:
        number_type = torch.get_default_dtype()
        if number_type != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, number_type)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
