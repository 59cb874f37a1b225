"""Scan a block of scores for candidates: a superset of the pairs that a rule can select.

The pre-activation p of row r and latent j with score q satisfies |p - v| <= e, where v = q + bias[j] and

    e = slack[r] * norm[j] + relative * |q| + ROUNDING * |v| + FLOOR          (:mod:`...bounds`)

Latents are first compared in chunks. Let m be the largest v of a chunk. All its p are at most m + E, and the
p of the largest v is at least m - E, where E is e with m for v, |m| + max |bias| for |q| and max norm for
norm, because v + e grows with v.

Legend: b rows of the block, F latents.
"""

from typing import Any, NamedTuple

import numpy as np

from ...bounds import FLOOR, ROUNDING
from ..bits import LOWEST, as_float, at_least, float_of_key, key, lowest, without_lowest
from ..compile import compiled

CHUNK = 64  # a constant, so that loops over a chunk become vector instructions

LARGEST = np.float32(3e38)
OVERFLOW = -1  # replaces the number of candidates if they exceed the memory
EXCLUDED = np.int32(2**31 - 1)  # above the key of every float, infinity included


def whole_chunks(num_latents: int) -> int:
    """``num_latents`` rounded up to whole chunks."""
    return -(-num_latents // CHUNK) * CHUNK


class Latents(NamedTuple):
    """Bias and norm of every latent, numpy float32 [F], and the largest |bias| and norm of each chunk."""

    bias: Any
    norm: Any
    bias_of_chunk: Any
    norm_of_chunk: Any


def describe_latents(bias: Any, norm: Any) -> Latents:
    """Make :class:`Latents` of ``bias`` and ``norm``, numpy float32 [F]."""
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
    """Find the pairs whose pre-activation can reach the threshold of its latent, by rows, latents ascending.

    Args:
        scores: float32 or bfloat16 bits [b, F], without NaN.
        tops: int32 [b, chunks], from :func:`top_of_chunks`.
        slack: float32 [b].
        threshold: int32 [F rounded up to whole chunks], the :func:`..bits.key` per latent; EXCLUDED selects
            nothing.
        threshold_of_chunk: int32, the least threshold of each chunk.
        candidate: int64 [capacity + CHUNK], receives the latents.
        row_ptr: int64 [b + 1], receives the ranges: row r has candidates ``row_ptr[r]:row_ptr[r + 1]``.

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
    """e of a score q, which is v with its bias. e is finite even if v is infinite, so v - e is not NaN."""
    return slack * norm + relative * min(abs(q), LARGEST) + ROUNDING * min(abs(v), LARGEST) + FLOOR


@compiled
def chunk_error(m: Any, latents: Any, chunk: int, slack: Any, relative: Any) -> Any:
    """E of a chunk whose largest v is ``m``."""
    largest = abs(m) + latents.bias_of_chunk[chunk]
    return error_bound(largest, m, latents.norm_of_chunk[chunk], slack, relative)


@compiled
def top_of_chunks(scores: Any, bias: Any, tops: Any) -> None:
    """Write the key of the largest v of each chunk of every row to ``tops``, int32 [b, chunks]."""
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
    """Write the keys of m - E of every chunk to ``lower``, of m + E to ``upper``; ``tops`` has those of m."""
    for chunk in range(upper.shape[0]):
        m = float_of_key(tops[chunk])
        most = chunk_error(m, latents, chunk, slack, relative)
        upper[chunk] = key(m + most)
        lower[chunk] = key(m - most)


@compiled
def bound_latents(scores: Any, latents: Any, slack: Any, relative: Any, lower: Any) -> None:
    """Write the keys of v - e of every latent to ``lower``."""
    bias, norm = latents.bias, latents.norm
    for j in range(lower.shape[0]):
        q = as_float(scores[j])
        v = q + bias[j]
        lower[j] = key(v - error_bound(q, v, norm[j], slack, relative))


@compiled
def upper_keys(scores: Any, latents: Any, slack: Any, relative: Any, start: int, keys: Any) -> None:
    """Write the keys of v + e of the chunk from latent ``start`` on; LOWEST after the last latent."""
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
        i = np.uintp(start + j)  # an index that could be negative would prevent vector instructions
        q = as_float(scores[i])
        v = q + bias[i]
        keys[j] = key(v + error_bound(q, v, norm[i], slack, relative))
