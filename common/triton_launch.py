"""How Triton's kernels are declared and started."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor


def kernel(function: Callable[..., Any]) -> Any:
    """``triton.jit``, typed: a kernel, or a function that kernels call."""
    return triton.jit(function)


def launch(function: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start ``function`` on the device of its first tensor; an empty grid starts nothing.

    A product and a sum are rounded once, together, only where the kernel says ``tl.fma``. If the compiler
    chose, the threads that share a reduction could get different last bits, and so could two compilations of
    the same comparison.
    """
    if 0 in grid:
        return
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        function[grid](*arguments, **{"enable_fp_fusion": False, **options})
