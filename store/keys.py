"""Counter-based hashes: where a row goes in the shuffle, and which documents are held out.

Both are pure functions of (seed, index), so they do not depend on batch size, workers or interruptions. The
mixer is the 64-bit finalizer of SplitMix64, applied twice with two seed-dependent constants. For a given seed
it is a bijection of the 64-bit integers: two rows never have the same key.
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))

# Streams keep the uses of one seed apart: the same number hashes differently in each.
_ROW_STREAM, _DOCUMENT_STREAM, _CHUNK_STREAM, _WINDOW_STREAM = range(4)
_MIXTURE_STREAM = -1
_SHARD_STREAM = 0  # of epochs from 1 on: epoch e adds 4 * e to its streams


def row_keys(seed: int, token_index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The shuffle key of each row: rows are stored in ascending order of it.

    Args:
        seed: any integer.
        token_index: uint64 [n], sequence * context + position.

    Returns:
        uint64 [n]; distinct for distinct indices.
    """
    return _hash(seed, _ROW_STREAM, token_index)


def is_heldout(seed: int, documents: NDArray[np.integer], fraction: float) -> NDArray[np.bool_]:
    """Which documents are held out of training: about ``fraction`` of them. bool, shape of ``documents``."""
    if fraction <= 0:
        return np.zeros(np.shape(documents), dtype=np.bool_)
    keys = _hash(seed, _DOCUMENT_STREAM, np.asarray(documents).astype(np.int64).view(np.uint64))
    return keys < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))


def mixture_draws(seed: int, numbers: NDArray[np.integer]) -> NDArray[np.float64]:
    """A random draw in [0, 1) for each number, which decides the part of a mixture that a document is of."""
    keys = _hash(seed, _MIXTURE_STREAM, np.asarray(numbers).astype(np.int64).view(np.uint64))
    draws: NDArray[np.float64] = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def epoch_permutation(
    seed: int, epoch: int, count: int, shard_chunks: int | None = None, group_shards: int = 1
) -> NDArray[np.int64]:
    """An order of ``count`` chunks, a pure function of (seed, epoch). int64 [count].

    Without ``shard_chunks`` a uniform permutation. With it, shards of so many chunks are put in a random
    order and taken ``group_shards`` at a time, and the chunks of each group are permuted. A single group is
    the same as none.
    """
    chunks = np.arange(count, dtype=np.uint64)
    keys = _hash(seed, _CHUNK_STREAM + 4 * epoch, chunks)
    num_shards = 1 if shard_chunks is None else -(-count // shard_chunks)
    if shard_chunks is None or num_shards <= group_shards:
        return np.argsort(keys).astype(np.int64, copy=False)
    shard_keys = _hash(seed, _SHARD_STREAM + 4 * epoch, np.arange(num_shards, dtype=np.uint64))
    group = np.empty(num_shards, dtype=np.int64)
    group[np.argsort(shard_keys)] = np.arange(num_shards) // group_shards
    return np.lexsort((keys, group[chunks.astype(np.int64) // shard_chunks])).astype(np.int64, copy=False)


def window_keys(seed: int, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The keys that order rows inside one window of an epoch. uint64, shape of ``rows``."""
    return _hash(seed, _WINDOW_STREAM + 4 * epoch, rows.astype(np.uint64))


def _hash(seed: int, stream: int, index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    base = np.array([(seed * 0x100000000 + stream) % 2**64, (seed >> 32) % 2**64], dtype=np.uint64)
    first, second = _mix(base + np.array([_GOLDEN, ~_GOLDEN]))
    second = _mix(np.array([second ^ first]))[0]
    keys = np.asarray(index, dtype=np.uint64) * _GOLDEN + first
    return _mix(_mix(keys) ^ second)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> _SHIFTS[0])) * _MULTIPLIERS[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return z ^ (z >> _SHIFTS[2])
