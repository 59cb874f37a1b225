"""The sources of selections: an encoder, whose pre-activations are not computed yet, or given scores.

Legend: B rows, b rows of a block, D model width, F latents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise

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


class _Factors:
    """What pre-activations have that are made of rows [B, ...] and of an encoder's matrix [F, ...]."""

    x_centered: Tensor
    W_enc: Tensor

    @property
    def num_rows(self) -> int:
        return self.x_centered.shape[0]

    @property
    def num_latents(self) -> int:
        return self.W_enc.shape[0]

    @property
    def device(self) -> torch.device:
        return self.W_enc.device


@dataclass(frozen=True, eq=False)
class Encoder(_Factors):
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
    def rows_per_block(self) -> int:
        """The rows of a block; the last one may have fewer."""
        assert self.block_rows is not None, "set in __post_init__"
        return self.block_rows

    def of_rows(self, rows: slice) -> "Encoder":
        """The same encoder for some of the rows."""
        start, stop, _ = rows.indices(self.num_rows)
        return self if stop - start == self.num_rows else replace(self, x_centered=self.x_centered[rows])

    def blocks(self) -> Blocks:
        """Yield all pre-activations block by block, from float32 matrix products."""
        x, W, b, size = self.x_centered, self.W_enc, self.b_enc, self.rows_per_block
        with borrowed(min(size, len(x)), len(W), dtype=x.dtype, device=x.device) as buffer:
            for first_row in range(0, len(x), size):
                part = x[first_row : first_row + size]
                out = buffer[: len(part)]
                yield first_row, matmul(part, W.T, out, columns=self.slice_latents, bias=b)


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


@dataclass(frozen=True, eq=False)
class LayeredEncoder(_Factors):
    """The pre-activations of latents that read one of several layers each, whose rows lie side by side.

    The latents of a layer are consecutive, and ascend with the layers. Latent i of layer l has the
    pre-activation <x_centered of layer l, W_enc_i> + b_enc_i: the products with other layers do not exist.

    Attributes:
        x_centered: float32 [B, L * d], the rows of L layers. W_enc: float32 [F, d]. b_enc: float32 [F].
        bounds: the first latent of each layer, ascending, and F at the end.
        block_rows, slice_latents: as those of :class:`Encoder`.
    """

    x_centered: Tensor
    W_enc: Tensor
    b_enc: Tensor
    bounds: tuple[int, ...]
    block_rows: int | None = None
    slice_latents: int | None = None

    def __post_init__(self) -> None:
        width = self.W_enc.shape[1] * (len(self.bounds) - 1)
        if self.x_centered.dim() != 2 or self.x_centered.shape[1] != width:
            raise ValueError(f"x_centered must be [B, {width}], got {tuple(self.x_centered.shape)}")

    @cached_property
    def layers(self) -> tuple[tuple[slice, Encoder], ...]:
        """The latents of every layer that has some, with their encoder; each copies the rows of its layer."""
        width = self.W_enc.shape[1]
        return tuple(
            (
                slice(first, stop),
                Encoder(
                    self.x_centered[:, layer * width : (layer + 1) * width],
                    self.W_enc[first:stop],
                    self.b_enc[first:stop],
                    self.block_rows,
                ),
            )
            for layer, (first, stop) in enumerate(pairwise(self.bounds))
            if first < stop
        )

    def of_rows(self, rows: slice) -> "LayeredEncoder":
        """The same encoder for some of the rows."""
        return replace(self, x_centered=self.x_centered[rows])

    def blocks(self) -> Blocks:
        """Yield all pre-activations block by block, from float32 matrix products."""
        num_rows, num_latents = self.num_rows, self.num_latents
        size = self.block_rows or block_rows(num_latents, self.device)
        step = self.slice_latents or max(1, num_latents)
        with borrowed(min(size, num_rows), num_latents, dtype=torch.float32, device=self.device) as buffer:
            for first_row in range(0, num_rows, size):
                out = buffer[: min(size, num_rows - first_row)]
                for own, encoder in self.layers:
                    part = encoder.x_centered[first_row : first_row + size]
                    for first in range(own.start - own.start % step, own.stop, step):
                        some = slice(max(own.start, first), min(own.stop, first + step))
                        matmul(part, self.W_enc[some].T, out[:, some])
                yield first_row, out.add_(self.b_enc)


Source = Encoder | Scores
AnySource = Source | LayeredEncoder  # backends take the first two; see :mod:`..selection.layered`
