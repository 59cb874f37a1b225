"""Counter-based random numbers (:mod:`...plain.random_numbers`) for a batch in main memory."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plain.random_numbers import KEY_STEPS, LOW, MULTIPLIERS, ROUNDS, UNIT_BITS, halves
from ..threads import even_part, run_parts
from .compile import compiled

_LOW, _HALF = np.uint64(LOW), np.uint64(32)
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_K0, _K1 = np.uint64(KEY_STEPS[0]), np.uint64(KEY_STEPS[1])
_DROPPED = np.uint64(32 - UNIT_BITS)
_MIDDLE, _UNIT = np.float32(0.5), np.float32(2.0**-UNIT_BITS)


def random_uniform(
    seed: int, batch: int, row0: int, rows: int, num_latents: int, device: torch.device | str = "cpu"
) -> Tensor:
    """See :meth:`..protocol.Backend.random_uniform`; ``device`` is the CPU."""
    words = np.array(halves(seed, batch), np.uint64)
    num_groups = -(-num_latents // 4)
    padded = torch.empty(rows, 4 * num_groups)
    groups = padded.view(rows, num_groups, 4).numpy()
    run_parts(lambda first, last: _fill(groups, words, row0, first, last), rows, even_part(rows, 1))
    return padded[:, :num_latents]


@compiled
def _fill(groups: Any, words: Any, row0: int, first: int, last: int) -> None:
    """Write rows ``first`` to ``last - 1`` of ``groups``, float32 [rows, F / 4, 4]."""
    for row in range(first, last):
        for group in range(groups.shape[1]):
            c0, c1, c2, c3 = np.uint64(group), np.uint64(row0 + row), words[2], words[3]
            k0, k1 = words[0], words[1]
            for _ in range(ROUNDS):
                product0, product1 = c0 * _M0, c2 * _M1
                c0 = (product1 >> _HALF) ^ c1 ^ k0
                c2 = (product0 >> _HALF) ^ c3 ^ k1
                c1, c3 = product1 & _LOW, product0 & _LOW
                k0, k1 = (k0 + _K0) & _LOW, (k1 + _K1) & _LOW
            groups[row, group, 0] = (np.float32(np.int32(c0 >> _DROPPED)) + _MIDDLE) * _UNIT
            groups[row, group, 1] = (np.float32(np.int32(c1 >> _DROPPED)) + _MIDDLE) * _UNIT
            groups[row, group, 2] = (np.float32(np.int32(c2 >> _DROPPED)) + _MIDDLE) * _UNIT
            groups[row, group, 3] = (np.float32(np.int32(c3 >> _DROPPED)) + _MIDDLE) * _UNIT
