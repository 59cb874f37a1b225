"""Scan a block of scores for the latents that can be among the largest of each row; see :mod:`.scan`.

Legend: b rows of the block, F latents.
"""

from typing import Any

import numpy as np

from ..bits import LOWEST, as_float, at_least, key, kth_key, lowest, without_lowest
from ..compile import compiled
from ..prefetch import prefetch_columns
from .scan import CHUNK, OVERFLOW, bound_chunks, bound_latents, upper_keys

CHUNKS_PER_K = 4  # with fewer chunks per selected latent, the chunks' maxima are too coarse


@compiled
def enough_chunks(latents: Any, k: int) -> Any:
    """Whether there are so many chunks that their bounds separate the ``k`` largest latents well."""
    return latents.norm_of_chunk.shape[0] >= CHUNKS_PER_K * k


@compiled
def scan_for_largest(
    scores: Any,
    tops: Any,
    latents: Any,
    slack: Any,
    relative: Any,
    k: int,
    candidate: Any,
    count: Any,
) -> None:
    """Find every latent that can be among the ``k`` largest of its row, ascending.

    Candidates are the latents whose upper bound v + e reaches the k-th largest of some lower bounds. For
    small k these are the chunks' m - E: a cheap pass over the row, after which only about k chunks are
    scanned.

    Args:
        scores: float32 or bfloat16 bits [b, F], without NaN.
        tops: int32 [b, chunks], from :func:`.scan.top_of_chunks`.
        slack: float32 [b].
        candidate: int64 [b, capacity + CHUNK], receives the latents; capacity >= k.
        count: int64 [b], receives the number of candidates, or OVERFLOW.
    """
    capacity = candidate.shape[1] - CHUNK
    num_latents = scores.shape[1]
    num_chunks = latents.norm_of_chunk.shape[0]
    by_chunks = enough_chunks(latents, k)
    lower = np.empty(num_chunks if by_chunks else num_latents, np.int32)
    upper = np.empty(num_chunks, np.int32)
    keys = np.empty(CHUNK, np.int32)
    for row in range(scores.shape[0]):
        bound_chunks(tops[row], latents, slack[row], relative, lower[:num_chunks], upper)
        if not by_chunks:
            bound_latents(scores[row], latents, slack[row], relative, lower)
        least = kth_key(lower, lower.shape[0], k)
        n = 0
        for chunk in range(num_chunks):
            if upper[chunk] >= least and n <= capacity:
                start = chunk * CHUNK
                upper_keys(scores[row], latents, slack[row], relative, start, keys)
                reaching = at_least(keys, least)
                while reaching != 0:
                    candidate[row, n] = start + lowest(reaching)
                    n += 1
                    reaching = without_lowest(reaching)
        count[row] = n if n <= capacity else OVERFLOW


@compiled
def scan_for_leaders(
    scores: Any, tops: Any, latents: Any, slack: Any, relative: Any, k: int, leader: Any, upper: Any
) -> None:
    """Find k leaders per row: the latents with the largest v of the ``k`` chunks with the largest m - E.

    There must be ``k`` chunks. The least of the leaders' pre-activations is at most the k-th largest of the
    row, and closer to it than any lower bound from scores.

    Args:
        leader: int64 [b, k], receives the leaders, ascending.
        upper: int32 [b, chunks], receives the keys of m + E.
    """
    num_latents, num_chunks = scores.shape[1], upper.shape[1]
    lower = np.empty(num_chunks, np.int32)
    keys = np.empty(CHUNK, np.int32)
    for row in range(scores.shape[0]):
        bound_chunks(tops[row], latents, slack[row], relative, lower, upper[row])
        least = kth_key(lower, num_chunks, k)
        n = 0
        for chunk in range(num_chunks):
            if lower[chunk] >= least and n < k:
                leader[row, n] = chunk
                prefetch_columns(scores, row, chunk * CHUNK, min(chunk * CHUNK + CHUNK, num_latents))
                n += 1
        for i in range(n):
            start = leader[row, i] * CHUNK
            _score_keys(scores[row], latents.bias, start, keys)
            leader[row, i] = start + lowest(at_least(keys, tops[row, leader[row, i]]))


@compiled
def least_by_chunks(tops: Any, latents: Any, slack: Any, relative: Any, k: int) -> Any:
    """The k-th largest m - E of the chunks of each row, which k pre-activations reach: keys, int32 [b].

    LOWEST if there are fewer chunks than ``k``.
    """
    least = np.full(tops.shape[0], LOWEST, np.int32)
    lower, upper = np.empty(tops.shape[1], np.int32), np.empty(tops.shape[1], np.int32)
    if tops.shape[1] >= k:
        for row in range(tops.shape[0]):
            bound_chunks(tops[row], latents, slack[row], relative, lower, upper)
            least[row] = kth_key(lower, lower.shape[0], k)
    return least


@compiled
def _score_keys(scores: Any, bias: Any, start: int, keys: Any) -> None:
    """Write the keys of v of the chunk from latent ``start`` on; LOWEST after the last latent."""
    if start + CHUNK > scores.shape[0]:
        for j in range(CHUNK):
            keys[j] = LOWEST
            if start + j < scores.shape[0]:
                keys[j] = key(as_float(scores[start + j]) + bias[start + j])
        return
    for j in range(CHUNK):
        i = np.uintp(start + j)  # see upper_keys
        keys[j] = key(as_float(scores[i]) + bias[i])


@compiled
def scan_for_others(
    scores: Any,
    latents: Any,
    slack: Any,
    relative: Any,
    leader: Any,
    least: Any,
    upper: Any,
    candidate: Any,
    count: Any,
) -> None:
    """As :func:`scan_for_largest`, for a known bound: ``least[row]`` (int32 [b]) is at most the k-th largest
    key. ``leader`` and ``upper`` come from :func:`scan_for_leaders`; leaders are not candidates.
    """
    k, capacity = leader.shape[1], candidate.shape[1] - CHUNK
    keys = np.empty(CHUNK, np.int32)
    chunks = np.empty(upper.shape[1], np.int64)
    for row in range(scores.shape[0]):
        num_chunks = 0
        for chunk in range(upper.shape[1]):
            if upper[row, chunk] >= least[row]:
                chunks[num_chunks] = chunk
                num_chunks += 1
                prefetch_columns(scores, row, chunk * CHUNK, min(chunk * CHUNK + CHUNK, scores.shape[1]))
        n = following = 0
        for c in range(num_chunks):
            if n <= capacity:
                start = chunks[c] * CHUNK
                upper_keys(scores[row], latents, slack[row], relative, start, keys)
                while following < k and leader[row, following] < start + CHUNK:
                    if leader[row, following] >= start:
                        keys[leader[row, following] - start] = LOWEST
                    following += 1
                reaching = at_least(keys, least[row])
                while reaching != 0:
                    candidate[row, n] = start + lowest(reaching)
                    n += 1
                    reaching = without_lowest(reaching)
        count[row] = n if n <= capacity else OVERFLOW
