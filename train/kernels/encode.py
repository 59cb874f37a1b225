"""Pre-activations by blocks of rows, so that the [B, F] matrix never exists.

Legend: B rows, b rows of a block, D model width, F latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .matmul import matmul
from .scratch import borrowed

Blocks = Callable[[], Iterator[tuple[int, Tensor]]]
"""Each call streams (first row, pre-activations [b, F] in a buffer that the next block overwrites), rows
ascending.
"""


@dataclass(frozen=True, eq=False)
class EncoderBlocks:
    """The pre-activations x_centered @ W_enc.T + b_enc, not computed yet: :data:`Blocks` when called.

    The selection rules also look inside: with the factors at hand they can screen with a cheaper product,
    and compute the pre-activations of the few pairs that matter on their own.

    Attributes:
        x_centered: float32 [B, D]. W_enc: float32 [F, D]. b_enc: float32 [F].
        block_rows: rows of a block; the last may have fewer.
    """

    x_centered: Tensor
    W_enc: Tensor
    b_enc: Tensor
    block_rows: int

    def __call__(self) -> Iterator[tuple[int, Tensor]]:
        x, W, b = self.x_centered, self.W_enc, self.b_enc
        rows = min(self.block_rows, x.shape[0])
        with borrowed(rows, W.shape[0], dtype=x.dtype, device=x.device) as buffer:
            for first_row in range(0, x.shape[0], self.block_rows):
                part = x[first_row : first_row + self.block_rows]
                yield first_row, matmul(part, W.T, buffer[: part.shape[0]]).add_(b)


def encode_blocks(x_centered: Tensor, W_enc: Tensor, b_enc: Tensor, block_rows: int = 512) -> EncoderBlocks:
    """x_centered @ W_enc.T + b_enc, ``block_rows`` rows at a time.

    Args:
        x_centered: float32 [B, D].
        W_enc: float32 [F, D].
        b_enc: float32 [F].
    """
    width, latents = W_enc.shape[1], W_enc.shape[0]
    if x_centered.dim() != 2 or x_centered.shape[1] != width or b_enc.shape != (latents,):
        raise ValueError(
            f"encode_blocks expects x_centered [B, {width}] and b_enc [{latents}] for W_enc "
            f"{tuple(W_enc.shape)}, got {tuple(x_centered.shape)} and {tuple(b_enc.shape)}"
        )
    if block_rows < 1:
        raise ValueError(f"block_rows must be at least 1, got {block_rows}")
    return EncoderBlocks(x_centered.detach(), W_enc.detach(), b_enc.detach(), block_rows)
