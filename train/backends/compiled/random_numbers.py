"""Counter-based random numbers (:mod:`..plain.random_numbers`) for a batch in main memory.

A round runs over a block of counters before the next round, because only such loops become vector
instructions: this is more than twice as fast as torch.rand.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plain.random_numbers import KEY_STEPS, MULTIPLIERS, ROUNDS, UNIT_BITS, halves
from ..threads import even_part, run_parts
from .compile import compiled

BLOCK = 64  # counters, of four numbers each
_HALF = np.uint64(32)
_M0, _M1 = (np.uint64(m) for m in MULTIPLIERS)
_K0, _K1 = (np.uint32(k) for k in KEY_STEPS)
_DROPPED = np.uint32(32 - UNIT_BITS)
_MIDDLE, _UNIT = np.float32(0.5), np.float32(2.0**-UNIT_BITS)


def random_uniform(
    seed: int,
    batch: int,
    row0: int,
    rows: int,
    num_latents: int,
    device: torch.device | str = "cpu",
    first_latent: int = 0,
) -> Tensor:
    """See :meth:`..protocol.Backend.random_uniform`; ``device`` is the CPU."""
    words = np.array(halves(seed, batch), np.uint32)
    group0, skipped = divmod(first_latent, 4)
    num_groups = -(-(skipped + num_latents) // 4)
    padded = torch.empty(rows, 4 * num_groups)
    groups = padded.view(rows, num_groups, 4).numpy()
    run_parts(lambda first, last: _fill(groups, words, row0, group0, first, last), rows, even_part(rows, 1))
    return padded[:, skipped : skipped + num_latents]


@compiled
def _fill(groups: Any, words: Any, row0: int, group0: int, first: int, last: int) -> None:
    """Write rows ``first`` to ``last - 1`` of ``groups``, float32 [rows, groups from ``group0`` on, 4]."""
    counter = np.empty((4, BLOCK), np.uint32)
    for row in range(first, last):
        for start in range(0, groups.shape[1], BLOCK):
            _philox(np.uint32(group0 + start), np.uint32(row0 + row), words, counter)
            for j in range(min(BLOCK, groups.shape[1] - start)):
                for i in range(4):
                    word = np.int32(counter[i, j] >> _DROPPED)
                    groups[row, start + j, i] = (np.float32(word) + _MIDDLE) * _UNIT


@compiled
def _philox(group: Any, row: Any, words: Any, counter: Any) -> None:
    """Write the words of the groups from ``group`` on to ``counter``, uint32 [4, BLOCK]."""
    c0, c1, c2, c3 = counter[0], counter[1], counter[2], counter[3]
    for j in range(BLOCK):
        c0[j], c1[j], c2[j], c3[j] = group + np.uint32(j), row, words[2], words[3]
    k0, k1 = words[0], words[1]
    for _ in range(ROUNDS):
        for j in range(BLOCK):
            product0, product1 = np.uint64(c0[j]) * _M0, np.uint64(c2[j]) * _M1
            c0[j] = np.uint32(product1 >> _HALF) ^ c1[j] ^ k0
            c2[j] = np.uint32(product0 >> _HALF) ^ c3[j] ^ k1
            c1[j], c3[j] = np.uint32(product1), np.uint32(product0)
        k0, k1 = np.uint32(k0 + _K0), np.uint32(k1 + _K1)
