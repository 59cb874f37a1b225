"""Pre-activations by blocks of rows, so that the [B, F] matrix never exists."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Blocks = Callable[[], Iterator[tuple[int, Tensor]]]
"""Each call streams (first row, pre-activations [b, F] in a buffer that the next block overwrites), rows ascending."""


def encode_blocks(x_centered: Tensor, W_enc: Tensor, b_enc: Tensor, block_rows: int = 512) -> Blocks:
    """x_centered @ W_enc.T + b_enc, ``block_rows`` rows at a time.

    Args:
        x_centered: float32 [B, D].
        W_enc: float32 [F, D].
        b_enc: float32 [F].
    """

    def blocks() -> Iterator[tuple[int, Tensor]]:
        num_rows = x_centered.shape[0]
        buffer = x_centered.new_empty(min(block_rows, num_rows), W_enc.shape[0])
        for first_row in range(0, num_rows, block_rows):
            x = x_centered[first_row : first_row + block_rows]
            yield first_row, torch.addmm(b_enc, x, W_enc.T, out=buffer[: x.shape[0]])

    return blocks
