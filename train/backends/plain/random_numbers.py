"""Counter-based random numbers: a pure function of (seed, batch, row, latent), the same on every device.

Philox 4x32 with ten rounds (Salmon et al. 2011). Key: the low and the high half of the seed. Counter: latent
// 4, row, the low and the high half of the batch's number; word latent % 4 of the result belongs to the
latent. Neither the size of a block of rows nor the number of devices changes a number.
"""

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF
UNIT_BITS = 23  # numbers are the middles of 2²³ equal parts of (0, 1), exact in float32


def random_uniform(
    seed: int,
    batch: int,
    row0: int,
    rows: int,
    num_latents: int,
    device: torch.device | str,
    first_latent: int = 0,
) -> Tensor:
    """See :meth:`..protocol.Backend.random_uniform`."""
    k0, k1, batch0, batch1 = halves(seed, batch)
    end = first_latent + num_latents
    c0 = torch.arange(first_latent // 4, -(-end // 4), device=device)[None, :]
    c1 = torch.arange(row0, row0 + rows, device=device)[:, None]
    c2, c3 = (torch.full((1, 1), half, device=device) for half in (batch0, batch1))
    for _ in range(ROUNDS):  # the counters broadcast against each other in the first rounds
        (high0, low0), (high1, low1) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    skipped = first_latent % 4
    words = torch.stack([c0, c1, c2, c3], dim=2).flatten(1)[:, skipped : skipped + num_latents]
    return (words >> (32 - UNIT_BITS)).float().add_(0.5).mul_(2.0**-UNIT_BITS)


def halves(seed: int, batch: int) -> tuple[int, int, int, int]:
    """The low and the high 32 bits of the seed and of the batch's number.

    Raises:
        ValueError: one is not from 0 to 2**64 - 1.
    """
    for name, value in (("seed", seed), ("batch", batch)):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} must be from 0 to 2**64 - 1, got {value}")
    return seed & LOW, seed >> 32, batch & LOW, batch >> 32


def _product(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of a * m; all below 2³²."""
    low, high = (a & 0xFFFF) * m, (a >> 16) * m
    return (high + (low >> 16)) >> 16, ((high << 16) + low) & LOW
