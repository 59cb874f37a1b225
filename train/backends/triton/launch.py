"""How kernels are declared and started, and the sizes of their blocks."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import triton


def kernel(function: Callable[..., Any]) -> Any:
    """``triton.jit``, typed: a kernel, or a function that kernels call."""
    return triton.jit(function)


def launch(function: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start ``function`` on the device of its first tensor; an empty grid starts nothing."""
    if 0 in grid:
        return
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        function[grid](*arguments, enable_fp_fusion=True, **options)  # its default depends on the version


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)


def padded(count: int, least: int = 16) -> int:
    """The power of two that holds ``count``, and is not below ``least``: Triton's tensors have such sizes."""
    return max(least, 1 << max(0, count - 1).bit_length())


def warps_of(width: int) -> int:
    """Warps of a program that holds one row of ``width`` numbers, a few such rows in registers."""
    return 4 if width <= 1024 else 8 if width <= 4096 else 16


def check_rows(name: str, rows: Tensor, width: int | None = None) -> None:
    """Raise ValueError unless ``rows`` is a contiguous float32 matrix (of this ``width``)."""
    if rows.dim() != 2 or rows.dtype != torch.float32 or not rows.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous float32 matrix, got {rows.dtype} {tuple(rows.shape)} with strides "
            f"{rows.stride()}; call .float().contiguous() on it"
        )
    if width is not None and rows.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns, as the other rows have, got {rows.shape[1]}")
