"""Which rows latents are looked at on: the measured rows, and training rows if more are wanted.

Legend: N measured rows, M further rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...store import ActivationCache
from ..rows import MeasuredRows
from .passages import Passages, find_passages

_ROWS_AT_ONCE = 1 << 20

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LatentRows:
    """Rows with the text around them.

    Attributes:
        offset: int64 [N], the token of each measured row in the text.
        more: int64 [M], numbers of further rows of the training split, ascending; ``more_offset`` has their
            tokens.
        counts: rows by split.
    """

    passages: Passages
    measured: MeasuredRows
    offset: Ints
    more: Ints
    more_offset: Ints

    @property
    def counts(self) -> dict[str, int]:
        counts = {self.measured.split: self.measured.count}
        if len(self.more):
            counts["train"] = counts.get("train", 0) + len(self.more)
        return counts

    def row_of(self, offset: Ints) -> Ints:
        """The number of the row, in its split, of each token of the text; all must have one."""
        tokens = np.concatenate([self.offset, self.more_offset])
        rows = np.concatenate([self.measured.first + np.arange(self.measured.count), self.more])
        order = np.argsort(tokens)
        return rows[order[np.searchsorted(tokens, offset, sorter=order)]]


def find_latent_rows(cache: ActivationCache, rows: MeasuredRows, more_rows: int, seed: int) -> LatentRows:
    """The measured rows, and about ``more_rows`` rows of the training split."""
    tokens = _tokens_of(cache, rows.split, np.arange(rows.first, rows.first + rows.count))
    more = choose_more_rows(cache, rows, more_rows, seed)
    more_tokens = _tokens_of(cache, "train", more)
    passages = find_passages(cache, np.concatenate([tokens, more_tokens]))
    return LatentRows(
        passages=passages,
        measured=rows,
        offset=passages.find(tokens),
        more=more,
        more_offset=passages.find(more_tokens),
    )


def choose_more_rows(cache: ActivationCache, rows: MeasuredRows, wanted: int, seed: int) -> Ints:
    """Choose about ``wanted`` training rows that are not measured: all those of some sequences.

    The rows of a split are shuffled. Single rows would be contexts whose other tokens have no activation.
    """
    limit = rows.first if rows.split == "train" else len(cache)
    if wanted == 0 or limit == 0:
        return np.zeros(0, dtype=np.int64)
    num_sequences = len(cache.tokens)
    num_chosen = min(num_sequences, -(-wanted * num_sequences // len(cache)))
    chosen = np.zeros(num_sequences, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(num_sequences)[:num_chosen]] = True
    parts = [np.zeros(0, dtype=np.int64)]
    for start in range(0, limit, _ROWS_AT_ONCE):
        block = np.arange(start, min(start + _ROWS_AT_ONCE, limit))
        parts.append(block[chosen[_tokens_of(cache, "train", block) // cache.context]])
    return np.concatenate(parts)


def _tokens_of(cache: ActivationCache, split: str, row: Ints) -> Ints:
    """sequence * context + position of each row."""
    return cache.token_index(split).gather(row).astype(np.int64)
