"""The sizes of kernels' blocks, and the rows that kernels read and write."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ....common.triton_launch import kernel, launch

__all__ = ["blocks", "kernel", "launch", "padded", "warps_of", "whole_rows", "written_whole"]


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)


def padded(count: int, least: int = 16) -> int:
    """The power of two that holds ``count``, and is not below ``least``: Triton's tensors have such sizes."""
    return max(least, 1 << max(0, count - 1).bit_length())


def warps_of(width: int) -> int:
    """Warps of a program that holds one row of ``width`` numbers, a few such rows in registers."""
    return 4 if width <= 1024 else 8 if width <= 4096 else 16


def whole_rows(name: str, rows: Tensor, width: int | None = None) -> Tensor:
    """``rows`` as a kernel reads them, one after the other: copied if they are a view with gaps.

    Raises:
        ValueError: they are no float32 matrix (of this ``width``).
    """
    if rows.dim() != 2 or rows.dtype != torch.float32:
        raise ValueError(
            f"{name} must be a float32 matrix, got {rows.dtype} {tuple(rows.shape)}; call .float() on it"
        )
    if width is not None and rows.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns, as the other rows have, got {rows.shape[1]}")
    return rows.detach().contiguous()


@contextmanager
def written_whole(name: str, rows: Tensor, width: int | None = None) -> Iterator[Tensor]:
    """:func:`whole_rows` for an output: inside, kernels read and write them; then a copy is copied back."""
    whole = whole_rows(name, rows, width)
    yield whole
    if not rows.is_contiguous():
        rows.copy_(whole)
