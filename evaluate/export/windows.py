"""Windows of text all of whose tokens were measured: what a tool may look at that takes "no code" for "0".

Sequences are packed with several documents, and only some documents are held out. A window is used if every
token in it is of a document with measured rows. Legend: S sequences, W windows, T tokens of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...store import ActivationCache
from ..rows import MeasuredRows

_SEQUENCES_AT_ONCE = 4096
_ROWS_AT_ONCE = 1 << 18
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MeasuredWindows:
    """The windows of some measured rows.

    Attributes:
        ids: int32 [W, T], token ids.
        rows: the measured rows that lie in them; ``first`` and ``count`` bound their numbers.
        start: int64 [W], sequence * context + position of each window's first token, ascending.
    """

    ids: NDArray[np.int32]
    start: Ints
    rows: MeasuredRows

    @property
    def num_tokens(self) -> int:
        return int(self.ids.shape[1])

    def find(self, token_index: Ints) -> tuple[Ints, Ints]:
        """The window of each token and its place there, int64 [n] each; window -1 where it is in none."""
        window = np.searchsorted(self.start, token_index, side="right") - 1
        place = token_index - self.start[window.clip(min=0)]
        return np.where((window >= 0) & (place < self.num_tokens), window, -1), place


def find_windows(cache: ActivationCache, rows: MeasuredRows, num_tokens: int) -> MeasuredWindows:
    """Cut the sequences of the held-out ``rows`` into windows of ``num_tokens``, and keep those of measured
    documents.

    Raises:
        UsageError: the context is no multiple of ``num_tokens``, or no window is left.
    """
    if rows.split != "heldout":
        raise UsageError(
            f"{cache.path} has no held-out rows, which are in reading order: harvest with a heldout_fraction"
        )
    if num_tokens < 1 or cache.context % num_tokens:
        raise UsageError(
            f"--window {num_tokens} should divide the {cache.context} tokens of a sequence of {cache.path}"
        )
    index = np.asarray(cache.token_index("heldout")[rows.first : rows.first + rows.count]).astype(np.int64)
    measured = np.unique(np.concatenate(list(_documents_of(cache, index))))
    last = int(index[-1]) // cache.context
    ids, start = [], []
    for first in range(int(index[0]) // cache.context, last + 1, _SEQUENCES_AT_ONCE):
        part = slice(first, min(first + _SEQUENCES_AT_ONCE, last + 1))
        documents = np.asarray(cache.documents[part]).reshape(-1, num_tokens)
        known = np.isin(documents, measured).all(1)  # padding is -1, which is no document
        ids.append(np.asarray(cache.tokens[part]).reshape(-1, num_tokens)[known].astype(np.int32))
        start.append(first * cache.context + np.flatnonzero(known).astype(np.int64) * num_tokens)
    starts = np.concatenate(start)
    kept = starts + num_tokens <= index[-1] + 1  # after the last measured row, rows are missing
    if not kept.any():
        raise UsageError(
            f"no window of {num_tokens} tokens lies within measured documents: lower --window, or raise "
            "--max-rows"
        )
    return MeasuredWindows(ids=np.concatenate(ids)[kept], start=starts[kept], rows=rows)


def _documents_of(cache: ActivationCache, index: Ints) -> Iterator[NDArray[np.int32]]:
    for first in range(0, len(index), _ROWS_AT_ONCE):
        sequence, position = np.divmod(index[first : first + _ROWS_AT_ONCE], cache.context)
        needed, where = np.unique(sequence, return_inverse=True)
        yield np.unique(np.asarray(cache.documents[needed])[where, position])
