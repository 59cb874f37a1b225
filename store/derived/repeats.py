"""Which documents two caches have in common, however they were packed into sequences."""

import numpy as np
from numpy.typing import NDArray

from ..keys import row_keys
from ..reading.reader import ActivationCache

MIN_TOKENS = 32  # shorter documents may well be written twice

_BLOCK_TOKENS = 1 << 22


def document_hashes(cache: ActivationCache) -> NDArray[np.uint64]:
    """A hash of the tokens of each document of at least :data:`MIN_TOKENS`, uint64, ascending and distinct.

    Where a document lies in the sequences does not matter; a beginning-of-sequence token is not its own. Of
    caches without token ids there is none.
    """
    if cache.manifest.tokens != "ids and documents":
        return np.empty(0, np.uint64)
    ids, documents, step = cache.tokens, cache.documents, max(1, _BLOCK_TOKENS // cache.context)
    found: list[NDArray[np.uint64]] = []  # [3, runs]: document, part of its hash, tokens
    last, seen = -1, 0  # the document at the end of the block before, and its tokens so far
    for first in range(0, len(ids), step):
        block = ids[first : min(first + step, len(ids))]
        numbers = documents[first : first + len(block)]
        own = (numbers >= 0) & ~_begins_sequence(cache, block)
        tokens, numbers = block[own].astype(np.uint64), numbers[own]
        if not len(numbers):
            continue
        starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1])
        counts = np.diff(np.append(starts, len(numbers)))
        places = np.arange(len(numbers)) - np.repeat(starts, counts)
        before = seen if numbers[0] == last else 0
        places[: counts[0]] += before
        parts = np.add.reduceat((tokens + np.uint64(1)) * row_keys(0, places.astype(np.uint64)), starts)
        found.append(np.stack([numbers[starts].astype(np.uint64), parts, counts.astype(np.uint64)]))
        last, seen = int(numbers[-1]), int(counts[-1]) + (before if len(starts) == 1 else 0)
    if not found:
        return np.empty(0, np.uint64)
    runs = np.concatenate(found, axis=1)
    distinct, places = np.unique(runs[0], return_inverse=True)
    sums = np.zeros((2, len(distinct)), np.uint64)
    for total, values in zip(sums, runs[1:], strict=True):
        np.add.at(total, places, values)
    return np.unique(sums[0][sums[1] >= MIN_TOKENS])


def _begins_sequence(cache: ActivationCache, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Positions of ``ids`` [n, context] that are the BOS which packing puts before every sequence."""
    packing = cache.manifest.identity.get("packing")
    bos = packing.get("bos_id") if isinstance(packing, dict) else None
    begins = np.zeros(ids.shape, np.bool_)
    if isinstance(bos, int):
        begins[:, 0] = ids[:, 0] == bos
    return begins
