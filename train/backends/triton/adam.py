"""The optimizer's pass over one matrix: clipped, tangential gradient, Adam(W), rows of norm 1, in one sweep.

What changes from step to step is read from the device's memory (:func:`adam_numbers`): the clip factor needs
no host synchronization, and a CUDA graph can replay the step. The sweep can also write what the next
screening product needs of the updated rows (:mod:`.rounding`).
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from .launch import blocks, kernel, launch, padded, warps_of, whole_rows
from .rounding import ScreenRows, latent_factor, to_bfloat16, upward_norm

if TYPE_CHECKING:
    from ..protocol import AdamSettings

TINY = tl.constexpr(1e-12)  # keeps a row of zeros from becoming NaN
BLOCK = 1024  # numbers of a program where rows do not matter


@kernel
def _power(base, exponent):
    """base ** exponent in float64, by repeated squaring; ``exponent`` is an int64 below 2³²."""
    result = base * 0 + 1
    for bit in range(32):
        result = tl.where((exponent >> bit) & 1 != 0, result * base, result)
        base = base * base
    return result


@kernel
def _numbers_kernel(settings, step, rate, rest, scale, out, LOADS: tl.constexpr):
    """``settings`` float64 [5]: beta1, beta2, eps, weight decay, decoupled. ``out`` float32 [10].

    With LOADS ``step`` and ``rate`` lie on the device; else the rate is ``rate`` + ``rest``, both float32.
    """
    beta1, beta2, eps = tl.load(settings), tl.load(settings + 1), tl.load(settings + 2)
    decay, decoupled = tl.load(settings + 3), tl.load(settings + 4)
    one = beta1 * 0 + 1
    if LOADS:
        lr, t = tl.load(rate), tl.load(step)
    else:
        lr, t = one * rate + one * rest, step
    tl.store(out, tl.load(scale).to(tl.float32))
    tl.store(out + 1, tl.where(decoupled != 0, 0.0, decay).to(tl.float32))
    tl.store(out + 2, tl.where(decoupled != 0, one - lr * decay, one).to(tl.float32))
    tl.store(out + 3, beta1.to(tl.float32))
    tl.store(out + 4, (one - beta1).to(tl.float32))
    tl.store(out + 5, beta2.to(tl.float32))
    tl.store(out + 6, (one - beta2).to(tl.float32))
    tl.store(out + 7, (lr / (one - _power(beta1, t))).to(tl.float32))
    tl.store(out + 8, (one / tl.sqrt(one - _power(beta2, t))).to(tl.float32))
    tl.store(out + 9, eps.to(tl.float32))


@kernel
def _updated(p, g, m, v, n):
    g = g * tl.load(n) + tl.load(n + 1) * p
    m = tl.load(n + 3) * m + tl.load(n + 4) * g
    v = tl.load(n + 5) * v + tl.load(n + 6) * g * g
    p = tl.load(n + 2) * p - tl.load(n + 7) * m / (tl.sqrt(v) * tl.load(n + 8) + tl.load(n + 9))
    return p, m, v


@kernel
def _flat_kernel(parameter, gradient, mean, square, n, size, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = i < tl.where(tl.load(n) >= 0, size, 0)  # a scale that is NaN suppresses the update
    p, g = tl.load(parameter + i, mask=inside, other=0.0), tl.load(gradient + i, mask=inside, other=0.0)
    m, v = tl.load(mean + i, mask=inside, other=0.0), tl.load(square + i, mask=inside, other=0.0)
    p, m, v = _updated(p, g, m, v, n)
    tl.store(parameter + i, p, mask=inside)
    tl.store(mean + i, m, mask=inside)
    tl.store(square + i, v, mask=inside)


@kernel
def _rows_kernel(
    parameter, gradient, mean, square, n, rounded, factor, norm,
    UNIT: tl.constexpr, REFRESH: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DP)
    stop = tl.where(tl.load(n) >= 0, D, 0)  # a scale that is NaN suppresses the update
    inside = column < stop
    i = f * D + column
    p, g = tl.load(parameter + i, mask=inside, other=0.0), tl.load(gradient + i, mask=inside, other=0.0)
    m, v = tl.load(mean + i, mask=inside, other=0.0), tl.load(square + i, mask=inside, other=0.0)
    tl.debug_barrier()  # threads that hold copies of a short row have read it before it is written
    if UNIT:
        g -= tl.sum(g * p) / tl.maximum(tl.sum(p * p), TINY) * p
    p, m, v = _updated(p, g, m, v, n)
    if UNIT:
        p = p / tl.maximum(tl.sqrt(tl.sum(tl.where(inside, p * p, 0.0))), TINY)
    tl.store(parameter + i, p, mask=inside)
    tl.store(mean + i, m, mask=inside)
    tl.store(square + i, v, mask=inside)
    if REFRESH:
        p = tl.where(inside, p, 0.0)
        low = to_bfloat16(p)
        left_out = p - low.to(tl.float32)
        length = upward_norm(p, D)
        tl.store(rounded + i, low, mask=inside)
        tl.store(norm + f, length, mask=stop > 0)
        tl.store(factor + f, latent_factor(length, upward_norm(left_out, D)), mask=stop > 0)


@kernel
def _squares_kernel(gradient, weights, squares, TANGENTIAL: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    f = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DP)
    g = tl.load(gradient + f * D + column, mask=column < D, other=0.0)
    if TANGENTIAL:
        w = tl.load(weights + f * D + column, mask=column < D, other=0.0)
        g -= tl.sum(g * w) / tl.maximum(tl.sum(w * w), TINY) * w
    tl.store(squares + f, tl.sum(g * g).to(tl.float64))


@kernel
def _flat_squares_kernel(gradient, squares, size, N: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    g = tl.load(gradient + i, mask=i < size, other=0.0)
    tl.store(squares + tl.program_id(0), tl.sum(g * g).to(tl.float64))


def gradient_norm(gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
    """L2 norm of ``gradient`` [F, D] (or [D]): float64 [], on the device. NaN or infinity when an entry is.

    With ``unit_rows_of`` [F, D], of what is left of each row after its part along that row is removed.
    """
    return global_norm([(gradient, unit_rows_of)])


def row_squares(gradient: Tensor, unit_rows_of: Tensor | None = None) -> Tensor:
    """See :meth:`..protocol.Backend.row_squares`."""
    g = whole_rows("gradient", gradient.detach().reshape(-1, gradient.shape[-1]))
    width = g.shape[1]
    weights = g if unit_rows_of is None else whole_rows("unit_rows_of", unit_rows_of, width)
    squares = torch.empty(len(g), dtype=torch.float64, device=g.device)
    launch(
        _squares_kernel, (len(g),), g, weights, squares, TANGENTIAL=unit_rows_of is not None, D=width,
        DP=padded(width), num_warps=warps_of(width),
    )  # fmt: skip
    return squares


def global_norm(gradients: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """The same of several gradients together, each with its ``unit_rows_of``."""
    sizes = [blocks(g.numel(), BLOCK) if rows is None else len(g) for g, rows in gradients]
    squares = torch.empty(sum(sizes), dtype=torch.float64, device=gradients[0][0].device)
    for (gradient, rows), out in zip(gradients, squares.split(sizes), strict=True):
        g = gradient.detach().contiguous()
        if rows is None:
            launch(_flat_squares_kernel, (len(out),), g, out, g.numel(), N=BLOCK)
            continue
        g = whole_rows("gradient", g)
        width = g.shape[1]
        weights = whole_rows("unit_rows_of", rows, width)
        launch(
            _squares_kernel, (len(g),), g, weights, out, TANGENTIAL=True, D=width, DP=padded(width),
            num_warps=warps_of(width),
        )  # fmt: skip
    return squares.sum().sqrt()


@kernel
def _clip_kernel(figures, unsound, out, size, limit, CLIPS: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    bad = tl.load(unsound) + tl.sum(tl.load(figures + i, mask=i < size, other=0.0) * 0.0, axis=0)
    scale = bad * 0.0 + 1.0
    if CLIPS:
        scale = tl.minimum(scale, limit / (tl.load(figures + size - 1) + 1e-6))
    tl.store(unsound, bad)
    tl.store(out, tl.where(bad == 0.0, scale, float("nan")))


def clip(figures: Tensor, limit: float | None, unsound: Tensor) -> Tensor:
    """See :meth:`..protocol.Backend.clip`."""
    out = torch.empty_like(unsound)
    launch(
        _clip_kernel, (1,), figures, unsound, out, len(figures), float(limit or 0.0),
        CLIPS=limit is not None, N=padded(len(figures)), num_warps=1,
    )  # fmt: skip
    return out


@cache
def _constants(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def _on(device: torch.device, value: float | Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=device)


def adam_numbers(
    settings: "AdamSettings",
    step: int | Tensor,
    device: torch.device,
    *,
    learning_rate: Tensor | None = None,
    gradient_scale: Tensor | None = None,
) -> Tensor:
    """The ten numbers that a step needs, float32 [10], on the device, computed in float64.

    Args:
        step: 1 for the first; an int64 [] on the device is read there.
        learning_rate, gradient_scale: float64 [] on the device; None takes those of ``settings``.
    """
    fixed = (*settings.betas, settings.eps, settings.weight_decay, float(settings.decoupled))
    constants = _constants(fixed, device)
    given = isinstance(step, Tensor) or learning_rate is not None
    rate: float | Tensor = settings.learning_rate if learning_rate is None else learning_rate
    rest: float = 0.0
    if given:
        rate, step = _on(device, rate, torch.float64), _on(device, step, torch.int64)
    else:  # by value: nothing has to be copied to the device
        rest = float(rate) - float(np.float32(rate))
        rate = float(np.float32(rate))
    scale = _on(device, settings.gradient_scale if gradient_scale is None else gradient_scale, torch.float64)
    out = torch.empty(10, device=device)
    launch(_numbers_kernel, (1,), constants, step, rate, rest, scale, out, LOADS=given, num_warps=1)
    return out


def adam_step(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int | Tensor,
    settings: "AdamSettings",
    *,
    unit_rows: bool = False,
    numbers: Tensor | None = None,
    refresh: ScreenRows | None = None,
) -> None:
    """Update ``parameter`` [F, D] (or [n]) and its moments in place; ``gradient`` stays as it is.

    Args:
        step: 1 for the first.
        unit_rows: the rows have norm 1 and keep it: the gradient's part along each row is removed, and the
            updated row is divided by its norm.
        numbers: of :func:`adam_numbers`, which the tensors of one step share; None computes them.
        refresh: the encoder's rows for the next screening product, written for the updated rows.
    """
    if numbers is None:
        numbers = adam_numbers(settings, step, parameter.device)
    tensors = (parameter, gradient.contiguous(), exp_avg, exp_avg_sq)
    if any(not t.is_contiguous() or t.dtype != torch.float32 for t in tensors):
        raise ValueError(
            "adam_step expects float32 tensors, and a parameter and moments without gaps between their rows; "
            "call .float().contiguous() on them"
        )
    if not unit_rows and refresh is None:
        size = parameter.numel()
        launch(_flat_kernel, (blocks(size, BLOCK),), *tensors, numbers, size, N=BLOCK)
        return
    width = parameter.shape[-1]
    rows = parameter.numel() // width if width else 0
    outputs = (parameter,) * 3 if refresh is None else (refresh.rounded, refresh.factor, refresh.norm)
    launch(
        _rows_kernel, (rows,), *tensors, numbers, *outputs, UNIT=unit_rows, REFRESH=refresh is not None,
        D=width, DP=padded(width), num_warps=warps_of(width),
    )  # fmt: skip
