"""What callers give to a writer, checked and brought into one form."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ..encoding.encode import int32_copy
from ..layout import TokensKind

SequenceArrays = dict[str, NDArray[np.int32]]  # "ids" and "document", those that exist


def sequence_arguments(
    ids: Any, documents: Any, keep: Any, context: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Arguments of ``write_sequences``: ids, documents int32 [n, context], keep bool [n, context].

    Raises:
        UsageError: another shape or type.
    """
    ids, documents, keep = int32_copy(ids, "ids"), int32_copy(documents, "documents"), np.asarray(keep)
    for name, array in (("ids", ids), ("documents", documents), ("keep", keep)):
        if array.shape != (len(ids), context):
            raise UsageError(f"{name}: expected shape ({len(ids)}, {context}), got {array.shape}")
    if keep.dtype != np.bool_:
        raise UsageError(f"keep: expected bool, got {keep.dtype}")
    return ids, documents, keep


def row_arguments(
    documents: Any, rows: int, first: int
) -> tuple[TokensKind, NDArray[np.integer], SequenceArrays]:
    """Arguments of ``write_rows``: the kind of cache, a document for each row [rows, 1], and what is stored.

    Args:
        documents: int [rows], or None when every row is its own.
        rows: how many are written.
        first: number of the first of them in the cache.

    Raises:
        UsageError: another number of documents.
    """
    if documents is None:
        return "none", np.arange(first, first + rows)[:, None], {}
    numbers = int32_copy(documents, "documents").reshape(-1, 1)
    if len(numbers) != rows:
        raise UsageError(f"documents: expected {rows} of them, got {len(numbers)}")
    return "documents", numbers, {"document": numbers}


def check_counts(counts: Any) -> None:
    """Counts for the manifest.

    Raises:
        UsageError: something else than whole numbers from 0.
    """
    if wrong := {name: count for name, count in counts.items() if not isinstance(count, int) or count < 0}:
        raise UsageError(f"counts: expected whole numbers from 0, got {wrong}")
