"""Compiled scans of a block of scores for the pairs that a rule could select: candidates, a superset.

A score q of row r and latent j stands for a pre-activation p with |p - v| <= e, where v = q + bias[j] and

    e = slack[r] * norm[j] + relative * |q| + ROUNDING * |v| + FLOOR          (:mod:`...bounds`)

Latents are looked at in chunks first. In a chunk with largest v = m, all p <= m + E, and the p of the
largest v is at least m - E, where E is e with m for v, |m| + max |bias| for |q| and max norm for norm: v + e
grows with v.

Legend: b rows of the block, F latents.
"""

from typing import Any, NamedTuple

import numpy as np

from ...bounds import FLOOR, ROUNDING
from ..bits import LOWEST, as_float, at_least, float_of_key, key, lowest, without_lowest
from ..compile import compiled

CHUNK = 64  # a constant, so that loops over a chunk become vector instructions

LARGEST = np.float32(3e38)
OVERFLOW = -1  # in place of a number of candidates
EXCLUDED = np.int32(2**31 - 1)  # above the key of every float, infinity included


def whole_chunks(num_latents: int) -> int:
    """``num_latents`` rounded up."""
    return -(-num_latents // CHUNK) * CHUNK


class Latents(NamedTuple):
    """What a scan knows of every latent, numpy float32 [F], and the largest over each chunk (the last one
    may be short).
    """

    bias: Any
    norm: Any
    bias_of_chunk: Any
    norm_of_chunk: Any


def describe_latents(bias: Any, norm: Any) -> Latents:
    """``bias`` and ``norm``: numpy float32 [F]."""
    starts = np.arange(0, bias.shape[0], CHUNK)
    return Latents(
        bias=bias,
        norm=norm,
        bias_of_chunk=np.maximum.reduceat(np.abs(bias), starts),
        norm_of_chunk=np.maximum.reduceat(norm, starts),
    )


@compiled
def scan_above(
    scores: Any,
    tops: Any,
    latents: Any,
    slack: Any,
    relative: Any,
    threshold: Any,
    threshold_of_chunk: Any,
    candidate: Any,
    row_ptr: Any,
) -> int:
    """Every pair whose pre-activation could reach the threshold of its latent, by rows, latents ascending.

    Args:
        scores: float32 or bfloat16 bits [b, F], without NaN.
        tops: int32 [b, chunks], of :func:`top_of_chunks`.
        slack: float32 [b].
        threshold: int32 [F rounded up to whole chunks], its :func:`.bits.key`; EXCLUDED admits nothing.
        threshold_of_chunk: int32, the least of each chunk.
        candidate: int64 [capacity + CHUNK], the latents, written.
        row_ptr: int64 [b + 1], written: row r has candidates ``row_ptr[r]:row_ptr[r + 1]``.

    Returns:
        The number of candidates, or OVERFLOW.
    """
    capacity = candidate.shape[0] - CHUNK
    num_chunks = latents.norm_of_chunk.shape[0]
    lower = np.empty(num_chunks, np.int32)
    upper = np.empty(num_chunks, np.int32)
    keys = np.empty(CHUNK, np.int32)
    n = 0
    row_ptr[0] = 0
    for row in range(scores.shape[0]):
        bound_chunks(tops[row], latents, slack[row], relative, lower, upper)
        for chunk in range(num_chunks):
            if upper[chunk] >= threshold_of_chunk[chunk]:
                if n > capacity:
                    return OVERFLOW
                start = chunk * CHUNK
                upper_keys(scores[row], latents, slack[row], relative, start, keys)
                reaching = at_least(keys, threshold[start : start + CHUNK])
                while reaching != 0:
                    candidate[n] = start + lowest(reaching)
                    n += 1
                    reaching = without_lowest(reaching)
        row_ptr[row + 1] = n
    return n if n <= capacity else OVERFLOW


@compiled
def error_bound(q: Any, v: Any, norm: Any, slack: Any, relative: Any) -> Any:
    """e of a score q, v with its bias. Finite for infinite ones, so that they stay what they are."""
    return slack * norm + relative * min(abs(q), LARGEST) + ROUNDING * min(abs(v), LARGEST) + FLOOR


@compiled
def chunk_error(m: Any, latents: Any, chunk: int, slack: Any, relative: Any) -> Any:
    """E of a chunk with the largest v of ``m``."""
    largest = abs(m) + latents.bias_of_chunk[chunk]
    return error_bound(largest, m, latents.norm_of_chunk[chunk], slack, relative)


@compiled
def top_of_chunks(scores: Any, bias: Any, tops: Any) -> None:
    """The key of the largest v of each chunk of every row, into ``tops``, int32 [b, chunks]."""
    num_latents = scores.shape[1]
    for row in range(scores.shape[0]):
        for chunk in range(tops.shape[1]):
            start = chunk * CHUNK
            top = LOWEST
            if start + CHUNK <= num_latents:
                for j in range(CHUNK):
                    i = np.uintp(start + j)  # see upper_keys
                    top = max(top, key(as_float(scores[row, i]) + bias[i]))
            else:
                for j in range(start, num_latents):
                    top = max(top, key(as_float(scores[row, j]) + bias[j]))
            tops[row, chunk] = top


@compiled
def bound_chunks(tops: Any, latents: Any, slack: Any, relative: Any, lower: Any, upper: Any) -> None:
    """Keys of m - E into ``lower``, of m + E into ``upper``, of every chunk; ``tops`` are those of m."""
    for chunk in range(upper.shape[0]):
        m = float_of_key(tops[chunk])
        most = chunk_error(m, latents, chunk, slack, relative)
        upper[chunk] = key(m + most)
        lower[chunk] = key(m - most)


@compiled
def bound_latents(scores: Any, latents: Any, slack: Any, relative: Any, lower: Any) -> None:
    """Keys of v - e of every latent."""
    bias, norm = latents.bias, latents.norm
    for j in range(lower.shape[0]):
        q = as_float(scores[j])
        v = q + bias[j]
        lower[j] = key(v - error_bound(q, v, norm[j], slack, relative))


@compiled
def upper_keys(scores: Any, latents: Any, slack: Any, relative: Any, start: int, keys: Any) -> None:
    """Keys of v + e of the chunk that starts at latent ``start``; LOWEST where there is no latent any
    more.
    """
    bias, norm = latents.bias, latents.norm
    if start + CHUNK > scores.shape[0]:
        for j in range(CHUNK):
            keys[j] = LOWEST
            if start + j < scores.shape[0]:
                q = as_float(scores[start + j])
                v = q + bias[start + j]
                keys[j] = key(v + error_bound(q, v, norm[start + j], slack, relative))
        return
    for j in range(CHUNK):
        i = np.uintp(start + j)  # an index that could be negative would keep this from becoming vector code
        q = as_float(scores[i])
        v = q + bias[i]
        keys[j] = key(v + error_bound(q, v, norm[i], slack, relative))
