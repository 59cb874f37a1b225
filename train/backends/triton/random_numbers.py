"""Counter-based random numbers (:mod:`..plain.random_numbers`): the same bits from one kernel."""

from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

from ..plain.random_numbers import KEY_STEPS, MULTIPLIERS, ROUNDS, halves
from .launch import blocks, kernel, launch

GROUPS = 256  # of four latents, of a program

_ROUNDS = tl.constexpr(ROUNDS)
_M0, _M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_K0, _K1 = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])


@kernel
def _unit(word):
    """In (0, 1): the middles of 2²³ equal parts, exact in float32."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@kernel
def uniform_groups(words, row, group):
    """Four numbers in (0, 1) for the latents 4 * group to 4 * group + 3 of ``row``; all of one shape.

    ``words`` int64 [2]: the bits of the seed and of the batch's number.
    """
    zero = (group * 0).to(tl.uint32)
    seed, batch = tl.load(words), tl.load(words + 1)
    k0, k1 = zero + seed.to(tl.uint32), zero + (seed >> 32).to(tl.uint32)
    c2, c3 = zero + batch.to(tl.uint32), zero + (batch >> 32).to(tl.uint32)
    c0, c1 = group.to(tl.uint32), zero + row.to(tl.uint32)
    m0, m1 = zero + _M0, zero + _M1
    for _ in range(_ROUNDS):
        high0, low0 = tl.umulhi(c0, m0), c0 * m0
        high1, low1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += _K0
        k1 += _K1
    return _unit(c0), _unit(c1), _unit(c2), _unit(c3)


@kernel
def _uniform_kernel(out, words, row0, F, first, N: tl.constexpr):
    skipped = first % 4
    across = tl.cdiv(
        F + skipped, 4 * N
    )  # programs beside each other; a grid may have no more than 65535 of them in y
    r = tl.program_id(0) // across
    group = tl.program_id(0) % across * N + tl.arange(0, N)
    u0, u1, u2, u3 = uniform_groups(words, r + row0, group + first // 4)
    latent = group * 4 - skipped
    place = out + r.to(tl.int64) * F + latent
    tl.store(place, u0, mask=(latent >= 0) & (latent < F))
    tl.store(place + 1, u1, mask=(latent + 1 >= 0) & (latent + 1 < F))
    tl.store(place + 2, u2, mask=(latent + 2 >= 0) & (latent + 2 < F))
    tl.store(place + 3, u3, mask=latent + 3 < F)


def words_of(seed: int, batch: int, device: torch.device | str) -> Tensor:
    """The bits of both numbers, int64 [2], made on the device: copying them there would wait for it."""
    halves(seed, batch)  # checks them
    of_seed, second = _bases(seed, torch.device(device))
    return torch.add(of_seed, second, alpha=_signed(batch))


@lru_cache(maxsize=256)
def _bases(seed: int, device: torch.device) -> Tensor:
    """The bits of the seed and 0, and 0 and 1: int64 [2, 2]."""
    return torch.tensor([[_signed(seed), 0], [0, 1]], device=device)


def _signed(number: int) -> int:
    """The int64 with the bits of a number below 2⁶⁴."""
    return number - (number >> 63 << 64)


def random_uniform(
    seed: int,
    batch: int,
    row0: int,
    rows: int,
    num_latents: int,
    device: torch.device | str,
    first_latent: int = 0,
) -> Tensor:
    """As :meth:`..protocol.Backend.random_uniform`."""
    words = words_of(seed, batch, device)
    out = torch.empty(rows, num_latents, device=device)
    grid = (blocks(num_latents + first_latent % 4, 4 * GROUPS) * rows,)
    launch(_uniform_kernel, grid, out, words, row0, num_latents, first_latent, N=GROUPS)
    return out
