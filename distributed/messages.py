"""Values that JSON can hold, as tensors that a group exchanges: a head of fixed length, and what is longer.

Nobody has to ask for the length of a short value first: most travel in one exchange.
"""

import json
from typing import Any

import torch
from torch import Tensor

HEAD_BYTES = 504  # of the text; with its length, 8 bytes, before it


def split_value(value: Any) -> tuple[Tensor, Tensor]:
    """The head, uint8 [8 + HEAD_BYTES], and the rest of the text, uint8 [n]; n is 0 where it is short."""
    text = bytearray(json.dumps(value).encode("utf-8"))
    start = bytearray(len(text).to_bytes(8, "little")) + text[:HEAD_BYTES].ljust(HEAD_BYTES)
    head = torch.frombuffer(start, dtype=torch.uint8)
    rest = torch.frombuffer(text, dtype=torch.uint8)[HEAD_BYTES:]
    return head, rest


def empty_head() -> Tensor:
    """Memory for a head that another process sends."""
    return torch.empty(8 + HEAD_BYTES, dtype=torch.uint8)


def length_of_rest(head: Tensor) -> int:
    return max(0, _length(head) - HEAD_BYTES)


def join_value(head: Tensor, rest: Tensor) -> Any:
    """The value of :func:`split_value`."""
    text = head.numpy().tobytes()[8 : 8 + _length(head)] + rest.numpy().tobytes()
    return json.loads(text)


def _length(head: Tensor) -> int:
    return int.from_bytes(head[:8].numpy().tobytes(), "little")
