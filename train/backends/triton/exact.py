"""The pre-activation that selection compares: a dot product with one order of sums, whatever surrounds it.

Column d of a row belongs to lane d mod 256. Every lane adds up its products in ascending order, each by one
fused multiply-add; the 256 lanes are then added in pairs, in eight steps. Additions of two numbers commute,
so neither the layout that the compiler picks nor the pairs that share a program change a bit. A dot product
of length D obeys the bound γ(D) |x||w| of any order (:mod:`saecache.train.backends.bounds`).
"""

import torch
import triton.language as tl
from torch import Tensor

from ...pairs import ROWS, Pairs
from .launch import blocks, kernel, launch, whole_rows

PAIRS = 8  # of a program; with 16 of them the registers of sm_100 do not suffice
TILE = 8  # rows and latents of a program of the whole matrix


@kernel
def fold_lanes(sums, N: tl.constexpr):
    """[N, 256] -> [N]. The first three steps add numbers that one thread holds."""
    sums = tl.sum(tl.reshape(sums, (N, 2, 128)), axis=1)
    sums = tl.sum(tl.reshape(sums, (N, 64, 2)), axis=2)
    sums = tl.sum(tl.reshape(sums, (N, 32, 2)), axis=2)
    sums = tl.sum(tl.reshape(sums, (N, 2, 16)), axis=1)
    sums = tl.sum(tl.reshape(sums, (N, 2, 8)), axis=1)
    sums = tl.sum(tl.reshape(sums, (N, 2, 4)), axis=1)
    sums = tl.sum(tl.reshape(sums, (N, 2, 2)), axis=1)
    return tl.sum(sums, axis=1)


@kernel
def dot_of_rows(a, b, inside, D: tl.constexpr, N: tl.constexpr):
    """float32 [N]: the dot products of the rows that start at the pointers ``a`` and ``b`` [N]."""
    lane = tl.arange(0, 256)
    sums = tl.zeros((N, 256), tl.float32)
    for start in range(0, D, 256):
        column = start + lane
        mask = inside[:, None] & (column < D)[None, :]
        x = tl.load(a[:, None] + column[None, :], mask=mask, other=0.0)
        w = tl.load(b[:, None] + column[None, :], mask=mask, other=0.0)
        sums = tl.fma(x, w, sums)
    return fold_lanes(sums, N)


@kernel
def _pairs_kernel(
    row, latent, x, W, bias, out, count, capacity,
    D: tl.constexpr, BIAS: tl.constexpr, COUNTED: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * N
    n = first * 0 + capacity
    if COUNTED:
        n = tl.minimum(tl.load(count), n)
    if first < n:
        p = first + tl.arange(0, N)
        inside = p < n
        r = tl.load(row + p, mask=inside, other=0).to(tl.int64)
        i = tl.load(latent + p, mask=inside, other=0).to(tl.int64)
        dot = dot_of_rows(x + r * D, W + i * D, inside, D, N)
        if BIAS == "latent":
            dot += tl.load(bias + i, mask=inside, other=0.0)
        if BIAS == "row":
            dot += tl.load(bias + r, mask=inside, other=0.0)
        tl.store(out + p, dot, mask=inside)


@kernel
def _matrix_kernel(
    x, W, bias, out, B, F,
    D: tl.constexpr, BIAS: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(F, L)  # programs beside each other; a grid may have no more than 65535 of them in y
    row = (tl.program_id(0) // across).to(tl.int64) * R + tl.arange(0, R)
    latent = (tl.program_id(0) % across).to(tl.int64) * L + tl.arange(0, L)
    lane = tl.arange(0, 256)
    sums = tl.zeros((R, L, 256), tl.float32)
    for start in range(0, D, 256):
        column = start + lane
        here = (column < D)[None, :]
        a = tl.load(x + row[:, None] * D + column[None, :], mask=(row < B)[:, None] & here, other=0.0)
        w = tl.load(W + latent[:, None] * D + column[None, :], mask=(latent < F)[:, None] & here, other=0.0)
        a = tl.broadcast_to(tl.expand_dims(a, 1), (R, L, 256))
        w = tl.broadcast_to(tl.expand_dims(w, 0), (R, L, 256))
        sums = tl.fma(a, w, sums)
    dot = tl.reshape(fold_lanes(tl.reshape(sums, (R * L, 256)), R * L), (R, L))
    if BIAS == "latent":
        dot += tl.load(bias + latent, mask=latent < F, other=0.0)[None, :]
    if BIAS == "row":
        dot += tl.load(bias + row, mask=row < B, other=0.0)[:, None]
    tl.store(out + row[:, None] * F + latent[None, :], dot, mask=(row < B)[:, None] & (latent < F)[None, :])


@kernel
def _rows_kernel(row_ptr, row, N: tl.constexpr):
    r = tl.program_id(0)
    last = tl.load(row_ptr + r + 1)
    for start in range(tl.load(row_ptr + r), last, N):
        p = start + tl.arange(0, N)
        tl.store(row + p, tl.zeros((N,), tl.int64) + r, mask=p < last)


def rows_of(pairs: Pairs) -> Tensor:
    """The row of every pair, int64 [P], made once for these places."""
    return pairs.once(ROWS, lambda: _rows_of(pairs))


def _rows_of(pairs: Pairs) -> Tensor:
    row = torch.empty_like(pairs.latent)
    launch(_rows_kernel, (pairs.num_rows,), pairs.row_ptr, row, N=32, num_warps=1)
    return row


def sddmm(pairs: Pairs, g: Tensor, W: Tensor) -> Tensor:
    """<g[row], W[latent]> of every pair, float32 [P]; the values of the pairs are not looked at."""
    return _at_pairs(pairs, g, W, None)


def exact(pairs: Pairs, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """The pre-activations fl(<x[row], W[latent]> + b[latent]) at the pairs, float32 [P].

    Args:
        pairs: [B, F]. x: float32 [B, D]. W: float32 [F, D]. b: float32 [F].
    """
    return _at_pairs(pairs, x, W, b)


def _at_pairs(pairs: Pairs, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    out = x.new_empty(len(pairs))
    exact_at(rows_of(pairs), pairs.latent, x, W, b, out)
    return out


def exact_at(
    row: Tensor,
    latent: Tensor,
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    out: Tensor,
    *,
    count: Tensor | None = None,
    bias_of: str = "latent",
) -> None:
    """Write the dot products, with the bias of the latent or the row added, of listed places.

    Args:
        row, latent: int32 or int64 [N].
        x: float32 [B, D]. W: float32 [F, D]. b: float32 [F], or [B] with ``bias_of="row"``.
        out: float32 [N].
        count: int64 [1], on the device: only so many of the places are there. None means all.
    """
    x = whole_rows("x", x)
    W = whole_rows("W", W, x.shape[1])
    size = row.numel()
    bias = "no" if b is None else bias_of
    launch(
        _pairs_kernel, (blocks(size, PAIRS),), row, latent, x, W, x if b is None else b, out,
        row if count is None else count, size,
        D=x.shape[1], BIAS=bias, COUNTED=count is not None, N=PAIRS, num_warps=4,
    )  # fmt: skip


def exact_matrix(x: Tensor, W: Tensor, b: Tensor | None, bias_of: str = "latent") -> Tensor:
    """The same dot products, bit for bit, of all rows with all latents: float32 [B, F]."""
    x = whole_rows("x", x)
    W = whole_rows("W", W, x.shape[1])
    out = x.new_empty(len(x), len(W))
    launch(
        _matrix_kernel, (blocks(len(W), TILE) * blocks(len(x), TILE),), x, W, x if b is None else b, out,
        len(x), len(W), D=x.shape[1], BIAS="no" if b is None else bias_of, R=TILE, L=TILE, num_warps=8,
    )  # fmt: skip
    return out
