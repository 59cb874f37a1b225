"""The gates of Probabilistic TopK in one pass: normalized, with their random numbers, ranked."""

import torch
import triton.language as tl
from torch import Tensor

from .. import gates as plain
from ..gates import EPSILON, Gates
from .launch import kernel, launch, padded, whole_rows
from .random_numbers import random_uniform, uniform_groups, words_of

COLUMNS = 2048  # of a row at a time
_EPSILON = tl.constexpr(EPSILON)


@kernel
def _rank_kernel(
    a, beta, words, out, row0, F, magnitude_weight,
    NORMALIZE: tl.constexpr, DRAW: tl.constexpr, MAGNITUDE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """``words`` are those of :func:`.random_numbers.words_of`."""
    r = tl.program_id(0)
    row = a + r.to(tl.int64) * F
    place = out + r.to(tl.int64) * F
    column = tl.arange(0, N)
    mean = tl.sum(tl.zeros((16,), tl.float32), axis=0)
    scale = mean + 1
    if NORMALIZE:
        sums = tl.zeros((N,), tl.float32)
        for start in range(0, F, N):
            sums += tl.load(row + start + column, mask=start + column < F, other=0.0)
        mean = (tl.sum(sums.to(tl.float64), axis=0) / F).to(tl.float32)
        sums = tl.zeros((N,), tl.float32)
        for start in range(0, F, N):
            inside = start + column < F
            centered = tl.where(inside, tl.load(row + start + column, mask=inside, other=0.0) - mean, 0.0)
            sums = tl.fma(centered, centered, sums)
        variance = tl.sum(sums.to(tl.float64), axis=0) / F
        scale = (1 / tl.sqrt(variance + _EPSILON)).to(tl.float32)
    b = tl.load(beta)
    group = tl.arange(0, N // 4)
    for start in range(0, F, N):
        inside = start + column < F
        value = tl.load(row + start + column, mask=inside, other=0.0)
        t = value
        if NORMALIZE:
            t = (value - mean) * scale
        if DRAW:
            u0, u1, u2, u3 = uniform_groups(words, r + row0, start // 4 + group)
            u = tl.interleave(tl.interleave(u0, u2), tl.interleave(u1, u3))
            t += tl.log(u / (1 - u))
        t = t / b
        if MAGNITUDE:
            t = magnitude_weight * tl.abs(value) - 1 / (1 + tl.exp(t))
        tl.store(place + start + column, t, mask=inside)


def rank_gates(a: Tensor, gates: Gates) -> Tensor:
    """As :meth:`..protocol.Backend.rank_gates`."""
    seed, batch, first_row, first_latent = gates.draw or (0, 0, 0, 0)
    if first_latent:  # groups of four numbers need not begin there
        return plain.rank_gates(random_uniform, a, gates)
    a = whole_rows("a", a)
    out = torch.empty_like(a)
    words = words_of(seed, batch, a.device) if gates.draw is not None else a
    launch(
        _rank_kernel, (len(a),), a, gates.beta, words, out, first_row, a.shape[1],
        float(gates.magnitude_weight),
        NORMALIZE=gates.layer_norm, DRAW=gates.draw is not None, MAGNITUDE=gates.magnitude_weight != 0,
        N=min(COLUMNS, padded(a.shape[1])), num_warps=8,
    )  # fmt: skip
    return out
