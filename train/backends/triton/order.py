"""Order statistics of floats through their bits: keys, and a radix selection whose histograms are integers.

The key of a float32 is a uint32 that orders as ``<`` does, with -0.0 equal to 0.0 and NaN above infinity.
"""

import torch
import triton.language as tl
from torch import Tensor

from .launch import blocks, kernel, launch

DIGITS = ((21, 11), (10, 11), (0, 10))  # lowest bit and width: three passes over the values
_BINS = 1 << 11
BLOCK = 4096  # values of a program


@kernel
def key_of(value):
    """uint32; see the top of this file."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@kernel
def float_of_key(key):
    """The float32 whose :func:`key_of` it is."""
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ ((~bits >> 31) | -2147483648)).to(tl.float32, bitcast=True)


@kernel
def nth_largest_key(key, n):
    """The ``n``-th largest of the keys of a program, bit by bit: uint32 [1], 0 if there are fewer."""
    found = tl.zeros((1,), tl.uint32)
    bit = tl.full((1,), 1 << 31, tl.uint32)
    for _ in range(32):
        reached = tl.sum((key >= (found | bit)).to(tl.int32), axis=0)
        found = tl.where(reached >= n, found | bit, found)
        bit = bit >> 1
    return found


@kernel
def _digit_kernel(
    values, count, capacity, state, histogram, out, wanted,
    SHIFT: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The next digit of the key that ``wanted`` values reach, into ``state``: key, still wanted, programs.

    Every program adds to ``histogram`` int64 [2 ** WIDTH] the digits of those of its values whose higher
    digits are the ones found; the last program that is done takes the sums, leaves zeros, and finds the
    digit. After the last digit the value of the key goes to ``out``. More than 2³¹ values of a large matrix
    of pre-activations can share a digit.
    """
    n = tl.minimum(tl.load(count), capacity)
    first = tl.program_id(0).to(tl.int64) * N
    digits = tl.arange(0, 1 << WIDTH)
    if first < n:
        i = first + tl.arange(0, N)
        key = key_of(tl.load(values + i, mask=i < n, other=0.0)).to(tl.int64)
        found = tl.load(state)
        here = (i < n) & ((key >> (SHIFT + WIDTH)) == (found >> (SHIFT + WIDTH)))
        digit = ((key >> SHIFT) & ((1 << WIDTH) - 1)).to(tl.int32)
        counts = tl.histogram(digit, 1 << WIDTH, mask=here)
        tl.atomic_add(histogram + digits, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
    tl.debug_barrier()  # every thread of this program has added before the program counts as done
    if tl.atomic_add(state + 2, 1) == tl.num_programs(0) - 1:
        counts = tl.atomic_xchg(histogram + digits, tl.zeros((1 << WIDTH,), tl.int64), sem="relaxed")
        reaching = tl.sum(counts) - tl.cumsum(counts) + counts  # values with this digit or a higher one
        left = tl.load(state + 1)
        if SHIFT + WIDTH == 32:  # the first digit
            left = left * 0 + wanted
        digit = tl.max(tl.where(reaching >= left, digits, 0))
        key = tl.load(state) | (digit.to(tl.int64) << SHIFT)
        tl.store(state, key)
        tl.store(state + 1, left - tl.sum(tl.where(digits > digit, counts, 0)))
        tl.store(state + 2, left * 0)
        if SHIFT == 0:
            tl.store(out, float_of_key(key.to(tl.uint32)))


def nth_largest(values: Tensor, count: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n``-th largest of the first ``count`` values, without a host synchronization.

    Args:
        values: float32 [N]. count: int64 [1], on the device. n: from 1.

    Returns:
        It, float32 [1], negative infinity or NaN when there are fewer; and how many of the values equal to it
        are among the n largest, int64 [1].
    """
    state, histogram = torch.zeros(3 + _BINS, dtype=torch.int64, device=values.device).split([3, _BINS])
    out, size = values.new_empty(1), values.numel()
    for shift, width in DIGITS:
        launch(
            _digit_kernel, (max(1, blocks(size, BLOCK)),), values, count, size, state, histogram, out, n,
            SHIFT=shift, WIDTH=width, N=BLOCK,
        )  # fmt: skip
    return out, state[1:2]
