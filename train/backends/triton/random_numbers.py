"""Counter-based random numbers: a pure function of (seed, batch, row, latent), the same on every device.

Philox 4x32 with ten rounds (Salmon et al. 2011). Key: the low and the high half of the seed. Counter: latent
// 4, row, the low and the high half of the batch's number; word latent % 4 of the result belongs to the
latent. Neither the size of a block of rows nor the number of devices changes a number.
"""

import torch
import triton.language as tl
from torch import Tensor

from .launch import blocks, kernel, launch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF
GROUPS = 256  # of four latents, of a program

_ROUNDS = tl.constexpr(ROUNDS)
_M0, _M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_K0, _K1 = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])


@kernel
def _unit(word):
    """In (0, 1): the middles of 2²³ equal parts, exact in float32."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@kernel
def _uniform_kernel(out, words, row0, F, N: tl.constexpr):
    """``words`` int64 [4]: the halves of the seed and of the batch's number."""
    across = tl.cdiv(F, 4 * N)  # programs beside each other; a grid may have no more than 65535 of them in y
    r = tl.program_id(0) // across
    group = tl.program_id(0) % across * N + tl.arange(0, N)
    zero = (group * 0).to(tl.uint32)
    k0, k1 = zero + tl.load(words).to(tl.uint32), zero + tl.load(words + 1).to(tl.uint32)
    c2, c3 = zero + tl.load(words + 2).to(tl.uint32), zero + tl.load(words + 3).to(tl.uint32)
    c0, c1 = group.to(tl.uint32), (group * 0 + r + row0).to(tl.uint32)
    m0, m1 = zero + _M0, zero + _M1
    for _ in range(_ROUNDS):
        high0, low0 = tl.umulhi(c0, m0), c0 * m0
        high1, low1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += _K0
        k1 += _K1
    latent = group * 4
    place = out + r.to(tl.int64) * F + latent
    tl.store(place, _unit(c0), mask=latent < F)
    tl.store(place + 1, _unit(c1), mask=latent + 1 < F)
    tl.store(place + 2, _unit(c2), mask=latent + 2 < F)
    tl.store(place + 3, _unit(c3), mask=latent + 3 < F)


def _words(seed: int, batch: int) -> list[int]:
    for name, value in (("seed", seed), ("batch", batch)):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} must be from 0 to 2**64 - 1, got {value}")
    return [seed & LOW, seed >> 32, batch & LOW, batch >> 32]


def random_uniform(
    seed: int, batch: int, row0: int, rows: int, num_latents: int, device: torch.device | str
) -> Tensor:
    """Numbers in (0, 1) for rows ``row0`` to ``row0 + rows - 1`` of a batch: float32 [rows, F].

    Args:
        seed, batch: from 0 to 2**64 - 1; ``batch`` is the batch's number.
        device: where they are made; :func:`random_uniform_torch` gives the same bits on every device.
    """
    words = torch.tensor(_words(seed, batch), dtype=torch.int64).to(device, non_blocking=True)
    out = torch.empty(rows, num_latents, device=device)
    grid = (blocks(num_latents, 4 * GROUPS) * rows,)
    launch(_uniform_kernel, grid, out, words, row0, num_latents, N=GROUPS)
    return out


def random_uniform_torch(
    seed: int, batch: int, row0: int, rows: int, num_latents: int, device: torch.device | str = "cpu"
) -> Tensor:
    """:func:`random_uniform` in plain torch operations."""
    k0, k1, batch0, batch1 = _words(seed, batch)
    groups = torch.arange(blocks(num_latents, 4), dtype=torch.int64, device=device)
    c0 = groups.expand(rows, -1)
    c1 = (torch.arange(rows, dtype=torch.int64, device=device) + row0)[:, None].expand_as(c0)
    c2, c3 = torch.full_like(c0, batch0), torch.full_like(c0, batch1)
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    words = torch.stack([c0, c1, c2, c3], dim=2).flatten(1)[:, :num_latents]
    return (words >> 9).float().add_(0.5).mul_(2.0**-23)


def _product(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a * m; all below 2³²."""
    low, high = (a & 0xFFFF) * m, (a >> 16) * m
    return (high + (low >> 16)) >> 16, ((high << 16) + low) & LOW
