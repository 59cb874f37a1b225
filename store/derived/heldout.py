"""Which documents of a cache are held out, according to its identity."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError
from ..keys import is_heldout
from ..manifest import Manifest

MERGED = "merged"  # of the identity of a merged cache: its parts


def find_heldout_positions(
    manifest: Manifest, documents: NDArray[np.integer], sequences: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which positions belong to held-out documents. bool, shape of ``documents`` [n, context].

    In a merged cache a document is held out by its number in the part that it comes from.

    Args:
        manifest: of the cache.
        documents: of some of its sequences.
        sequences: the numbers of these sequences, int64 [n], in any order.

    Raises:
        CorruptCacheError: the identity does not say how documents were held out.
    """
    numbers = documents.astype(np.int64)
    parts = read_merged_parts(manifest)
    if parts:
        first_documents = np.cumsum([0] + [part["documents"] for part in parts])
        last_sequences = np.cumsum([part["sequences"] for part in parts])
        part_of = np.searchsorted(last_sequences, sequences, side="right")
        first_documents[-1] = 0  # of sequences that no part has
        numbers -= np.where(numbers >= 0, first_documents[part_of][:, None], 0)
    return is_heldout(read_seed(manifest), numbers, read_heldout_fraction(manifest))


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
