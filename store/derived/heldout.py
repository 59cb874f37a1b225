"""Which documents of a cache are held out, according to its identity."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from ..keys import is_heldout
from ..manifest import Manifest

MERGED = "merged"  # of the identity of a merged cache: its parts


def find_heldout_positions(
    manifest: Manifest, documents: NDArray[np.integer], first_sequence: int
) -> NDArray[np.bool_]:
    """Which positions belong to held-out documents. bool, shape of ``documents`` [n, context].

    In a merged cache a document is held out by its number in the part that it comes from.

    Args:
        manifest: of the cache.
        documents: of its sequences ``first_sequence`` on.
        first_sequence: number of the first of them.

    Raises:
        CorruptCacheError: the identity does not say how documents were held out.
    """
    numbers = documents.astype(np.int64)
    for (first, last), first_document in _place_parts(manifest):
        part = numbers[max(0, first - first_sequence) : max(0, last - first_sequence)]
        part[part >= 0] -= first_document
    return is_heldout(read_seed(manifest), numbers, read_heldout_fraction(manifest))


def _place_parts(manifest: Manifest) -> Iterator[tuple[tuple[int, int], int]]:
    """((first sequence, last), first document) of each part of a merged cache."""
    sequence = document = 0
    for part in read_merged_parts(manifest):
        yield (sequence, sequence + part["sequences"]), document
        sequence, document = sequence + part["sequences"], document + part["documents"]


def read_merged_parts(manifest: Manifest) -> list[dict[str, Any]]:
    """The parts that a merged cache names; [] if they are malformed or it is not merged."""
    parts = manifest.identity.get(MERGED)
    if not isinstance(parts, list):
        return []
    for part in parts:
        sizes = [part.get(size) for size in ("sequences", "documents")] if isinstance(part, dict) else [None]
        if not all(isinstance(size, int) and 0 <= size < 2**48 for size in sizes):
            return []
    totals = [sum(part[size] for part in parts) for size in ("sequences", "documents")]
    return parts if max(totals) < 2**48 else []


def read_seed(manifest: Manifest) -> int:
    """The seed of the shuffle and the held-out split."""
    seed = manifest.identity.get("seed")
    if not isinstance(seed, int):
        raise CorruptCacheError(f"the cache's identity has no whole number as its seed, but {seed!r}")
    return seed


def read_heldout_fraction(manifest: Manifest) -> float:
    """The share of documents held out of training."""
    fraction = manifest.identity.get("heldout_fraction")
    if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise CorruptCacheError(f"the cache's identity has no held-out fraction in [0, 1), but {fraction!r}")
    return float(fraction)
