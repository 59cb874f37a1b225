"""The sources of selections: an encoder, whose pre-activations are not computed yet, or given scores.

Legend: B rows, b rows of a block, D model width, F latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from .plain.products import matmul
from .scratch import borrowed

CPU_BLOCK_BYTES = 32 * 2**20  # of a block of pre-activations: what the caches hold of it is enough
DEVICE_SHARE = 1 / 64  # of an accelerator's memory; it needs large blocks to be busy
DEVICE_BLOCK_BYTES = 2**30  # where torch does not say how much memory a device has

Blocks = Iterator[tuple[int, Tensor]]
"""(first row, float32 [b, F]), rows ascending; each block overwrites the one before."""


@cache
def block_bytes(device: torch.device) -> int:
    """The size of a block of pre-activations on ``device`` in bytes; the whole [B, F] need not exist.

    On a GPU it is a share of all memory, rounded down to a power of 2: 1 GiB of 80 GB, 256 MiB of 24 GB. The
    memory that is free would say more, but it changes with other programs, and the sums of the gradients of
    ReLU, Gated and JumpReLU are split by it: their last bits must not depend on who else uses the GPU.
    """
    if device.type == "cpu":
        return CPU_BLOCK_BYTES
    if device.type != "cuda":
        return DEVICE_BLOCK_BYTES
    share = int(DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return 1 << max(share, 1).bit_length() - 1


def block_rows(num_latents: int, device: torch.device) -> int:
    """The rows of a block of pre-activations of at most :func:`block_bytes`: a power of 2 from 32 to 4096."""
    fitting = block_bytes(device) // (4 * max(1, num_latents))
    return max(32, min(4096, 1 << max(fitting, 1).bit_length() - 1))


@dataclass(frozen=True, eq=False)
class Encoder:
    """The pre-activations x_centered @ W_enc.T + b_enc, which are not computed yet.

    A backend can use the factors to screen with a cheaper product, and then compute only the few
    pre-activations that matter one by one.

    Attributes:
        x_centered: float32 [B, D]. W_enc: float32 [F, D]. b_enc: float32 [F].
        block_rows: rows of a block; None takes :func:`block_rows`.
        slice_latents: latents whose pre-activations are one product; None: all, whose rounding can depend on
            their number.
    """

    x_centered: Tensor
    W_enc: Tensor
    b_enc: Tensor
    block_rows: int | None = None
    slice_latents: int | None = None

    def __post_init__(self) -> None:
        num_latents, width = self.W_enc.shape
        if self.x_centered.dim() != 2 or self.x_centered.shape[1] != width:
            raise ValueError(f"x_centered must be [B, {width}], got {tuple(self.x_centered.shape)}")
        if self.b_enc.shape != (num_latents,):
            raise ValueError(f"b_enc must be [{num_latents}], got {tuple(self.b_enc.shape)}")
        for name in ("x_centered", "W_enc", "b_enc"):
            tensor: Tensor = getattr(self, name)
            if tensor.requires_grad or not tensor.is_contiguous():  # else it stays the same object, of which
                object.__setattr__(self, name, tensor.detach().contiguous())  # a backend may keep something
        if self.block_rows is not None and self.block_rows < 1:
            raise ValueError(f"block_rows must be at least 1, got {self.block_rows}")
        if self.block_rows is None:
            object.__setattr__(self, "block_rows", block_rows(num_latents, self.device))

    @property
    def num_rows(self) -> int:
        return self.x_centered.shape[0]

    @property
    def num_latents(self) -> int:
        return self.W_enc.shape[0]

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def rows_per_block(self) -> int:
        """The rows of a block; the last one may have fewer."""
        assert self.block_rows is not None, "set in __post_init__"
        return self.block_rows

    def of_rows(self, rows: slice) -> "Encoder":
        """The same encoder for some of the rows."""
        return replace(self, x_centered=self.x_centered[rows])

    def blocks(self) -> Blocks:
        """Yield all pre-activations block by block, from float32 matrix products."""
        x, W, b, size = self.x_centered, self.W_enc, self.b_enc, self.rows_per_block
        with borrowed(min(size, len(x)), len(W), dtype=x.dtype, device=x.device) as buffer:
            for first_row in range(0, len(x), size):
                part = x[first_row : first_row + size]
                yield first_row, matmul(part, W.T, buffer[: len(part)], columns=self.slice_latents).add_(b)


@dataclass(frozen=True, eq=False)
class Scores:
    """Numbers for all pairs, made block by block in each pass. Selections compare them without change.

    Attributes:
        stream: starts a pass over the blocks.
    """

    stream: Callable[[], Blocks]
    num_rows: int
    num_latents: int
    device: torch.device

    def blocks(self) -> Blocks:
        return self.stream()


Source = Encoder | Scores
