"""Codes to rows, and the error of a reconstruction with its products with the decoder, one program a row."""

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import Pairs
from .exact import dot_of_rows
from .launch import kernel, launch, padded, warps_of, whole_rows, written_whole

DOTS = 8  # dot products at a time of one row's error


@kernel
def _scaled(index, scale, source, i, last, column, D: tl.constexpr, SHARE: tl.constexpr):
    """scale[i] and the row source[index[i] // SHARE]; zeros from ``last`` on."""
    there = i < last
    place = tl.load(index + i, mask=there, other=0).to(tl.int64)
    if SHARE > 1:
        place = place // SHARE
    row = tl.load(source + place * D + column, mask=column < tl.where(there, D, 0), other=0.0)
    return tl.load(scale + i, mask=there, other=0.0), row


@kernel
def decoded_row(
    sums, index, scale, source, first, last,
    D: tl.constexpr, DP: tl.constexpr, SHARE: tl.constexpr = 1,
):  # fmt: skip
    """sums + scale[i] * source[index[i]] for i in first..last-1, in that order, one fused multiply-add each.

    With SHARE above 1 as many consecutive indices share a row of ``source``. Four rows are asked for at a
    time, since a program waits for memory, not for arithmetic.
    """
    column = tl.arange(0, DP)
    for i in range(first, last, 4):
        a, s = _scaled(index, scale, source, i, last, column, D, SHARE)
        b, t = _scaled(index, scale, source, i + 1, last, column, D, SHARE)
        c, u = _scaled(index, scale, source, i + 2, last, column, D, SHARE)
        d, v = _scaled(index, scale, source, i + 3, last, column, D, SHARE)
        sums = tl.fma(s, a, sums)
        sums = tl.fma(t, b, sums)
        sums = tl.fma(u, c, sums)
        sums = tl.fma(v, d, sums)
    return sums


@kernel
def _decode_kernel(
    row_ptr, latent, value, W, bias, out,
    D: tl.constexpr, DP: tl.constexpr, BIAS: tl.constexpr, ONTO: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DP)
    inside = column < D
    sums = tl.zeros((DP,), tl.float32)
    if BIAS:
        sums = tl.load(bias + column, mask=inside, other=0.0)
    if ONTO:  # continues the sums that are there
        sums = tl.load(out + r * D + column, mask=inside, other=0.0)
    first, last = tl.load(row_ptr + r), tl.load(row_ptr + r + 1)
    sums = decoded_row(sums, latent, value, W, first, last, D, DP)
    tl.store(out + r * D + column, sums, mask=inside)


@kernel
def _reconstruct_kernel(
    row_ptr, latent, value, W, target, scale, error, dots, squared,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DP)
    inside = column < D
    first, last = tl.load(row_ptr + r), tl.load(row_ptr + r + 1)
    e = decoded_row(tl.zeros((DP,), tl.float32), latent, value, W, first, last, D, DP)
    e -= tl.load(target + r * D + column, mask=inside, other=0.0)
    tl.store(error + r * D + column, e, mask=inside)
    tl.store(squared + r, tl.sum(e * e))
    tl.debug_barrier()  # every warp reads the whole error back, in the order of sums of exact.py
    for start in range(first, last, N):
        p = start + tl.arange(0, N)
        here = p < last
        i = tl.load(latent + p, mask=here, other=0).to(tl.int64)
        dot = dot_of_rows(error + r * D + tl.zeros((N,), tl.int64), W + i * D, here, D, N)
        tl.store(dots + p, dot * scale, mask=here)


def decode(
    pairs: Pairs,
    W: Tensor,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    *,
    onto: bool = False,
) -> Tensor:
    """out[row] = bias + sum over the row's pairs of value * W[latent], in ascending order: float32 [B, D].

    Args:
        pairs: [B, F]. W: float32 [F, D]. bias: float32 [D]; None adds nothing.
        out: float32 [B, D] to write into; None allocates.
        onto: start from what ``out`` has, instead of the bias.
    """
    W = whole_rows("W", W)
    width = W.shape[1]
    if out is None:
        out = W.new_empty(pairs.num_rows, width)
    with written_whole("out", out, width) as whole:
        launch(
            _decode_kernel, (pairs.num_rows,), pairs.row_ptr, pairs.latent, pairs.value.contiguous(), W,
            W if bias is None else bias.contiguous(), whole, D=width, DP=padded(width),
            BIAS=bias is not None, ONTO=onto, num_warps=warps_of(width),
        )  # fmt: skip
    return out


def add_decoded(pairs: Pairs, W: Tensor, sums: Tensor) -> None:
    """See :meth:`..protocol.Backend.add_decoded`."""
    decode(pairs, W, out=sums, onto=True)


def reconstruct(
    pairs: Pairs, W_dec: Tensor, target: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The error of the decoded codes, and its dot product with the direction of every pair.

    Args:
        pairs: [B, F]. W_dec: float32 [F, D]. target: float32 [B, D].

    Returns:
        error = codes W_dec - target, float32 [B, D]; ``scale`` * <error[row], W_dec[latent]>, float32 [P],
        where the dot product has the bits of :func:`.exact.sddmm`; and |error|² of every row, float32 [B].
    """
    W_dec = whole_rows("W_dec", W_dec)
    target = whole_rows("target", target, W_dec.shape[1])
    width = W_dec.shape[1]
    error = torch.empty_like(target)
    dots, squared = target.new_empty(len(pairs)), target.new_empty(len(target))
    launch(
        _reconstruct_kernel, (pairs.num_rows,), pairs.row_ptr, pairs.latent, pairs.value.contiguous(), W_dec,
        target, scale, error, dots, squared, D=width, DP=padded(width), N=DOTS, num_warps=warps_of(width),
    )  # fmt: skip
    return error, dots, squared
