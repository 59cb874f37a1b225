"""The sequences that CE and KL are measured on: where a reconstruction is spliced in, where losses are taken.

Legend: n sequences, T context.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..common.errors import UsageError
from ..store import ActivationCache
from .metrics.bootstrap import group_documents

_BLOCK_SEQUENCES = 256
_BLOCK_ROWS = 2**20


@dataclass(frozen=True, kw_only=True)
class ScoredSequences:
    """Whole sequences with the places of their rows.

    Attributes:
        ids: int64 [n, T]; padding is 0 (it only follows the text, where a causal model does not see it).
        rows: int64 [n, T], the row of the measured split at each position; -1 for none.
        scored: bool [n, T], the positions whose next-token loss counts.
        group: int64 [n, T], the group of documents of each scored position; -1 elsewhere.
        num_groups: groups of documents, also of the sequences of other batches.
    """

    ids: np.ndarray
    rows: np.ndarray
    scored: np.ndarray
    group: np.ndarray
    num_groups: int

    @property
    def spliced(self) -> np.ndarray:
        """bool [n, T]: the positions whose activation is replaced."""
        return self.rows >= 0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, start: int, stop: int, *, cut: bool = False) -> "ScoredSequences":
        """Sequences ``start:stop``.

        ``cut`` leaves out what follows the token after the last position that one of them uses. It is
        padding, where each document has a sequence.
        """
        used = (self.scored[start:stop] | self.spliced[start:stop]).any(0)
        length = int(np.flatnonzero(used).max(initial=-1)) + 2 if cut else len(used)
        part = slice(start, stop), slice(length)
        return ScoredSequences(
            ids=self.ids[part],
            rows=self.rows[part],
            scored=self.scored[part],
            group=self.group[part],
            num_groups=self.num_groups,
        )


def choose_sequences(
    cache: ActivationCache, split: str, num_rows: int, ce_tokens: int, seed: int
) -> ScoredSequences:
    """Draw sequences without replacement until ``ce_tokens`` positions are scored; in reading order.

    A position is scored if it holds a row and is followed by a token of the same document.

    Args:
        split: "heldout" draws among the sequences that hold one of its first ``num_rows`` rows, "train" among
            all sequences, with all the training rows in them.

    Raises:
        UsageError: no row is followed by a token of its document.
    """
    order = np.random.default_rng(seed)
    parts: list[_Found] = []
    total = 0
    if split == "heldout":
        token_index = cache.token_index("heldout")[:num_rows].astype(np.int64)
        candidates = order.permutation(np.unique(token_index // cache.context))
    else:
        candidates = order.permutation(cache.tokens.shape[0])
        token_index = np.zeros(0, dtype=np.int64)
    # Finding training rows takes a pass over all of them, so the first block should be large enough.
    block = max(_BLOCK_SEQUENCES, 2 * ce_tokens // cache.context if split == "train" else 0)
    for start in range(0, len(candidates), block):
        sequences = np.sort(candidates[start : start + block])
        rows = (
            _heldout_rows(token_index, sequences, cache.context)
            if split == "heldout"
            else _train_rows(cache, sequences)
        )
        part = _read(cache, sequences, rows)
        scored_each = part.scored.sum(1)
        # Keep whole sequences in the drawn order, and no more than are still needed.
        drawn = np.searchsorted(sequences, candidates[start : start + block])
        enough = int(np.searchsorted(np.cumsum(scored_each[drawn]), ce_tokens - total)) + 1
        keep = np.sort(drawn[:enough])
        keep = keep[scored_each[keep] > 0]
        parts.append(_Found(*(array[keep] for array in part)))
        total += int(parts[-1].scored.sum())
        if total >= ce_tokens:
            break
    if total == 0:
        raise UsageError(
            f"{cache.path}: CE and KL need rows that are followed by a token of their document; its "
            f"{split} rows have none. Measure without the model (--no-model)."
        )
    whole = _Found(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    group = np.full(whole.ids.shape, -1, dtype=np.int64)
    group[whole.scored], num_groups = group_documents(whole.documents[whole.scored])
    return ScoredSequences(
        ids=whole.ids, rows=whole.rows, scored=whole.scored, group=group, num_groups=num_groups
    )


class _Found(NamedTuple):
    """Arrays [n, T] of some sequences, as in :class:`ScoredSequences`; ``documents`` is -1 for padding."""

    ids: np.ndarray
    rows: np.ndarray
    scored: np.ndarray
    documents: np.ndarray


def _read(cache: ActivationCache, sequences: np.ndarray, rows: np.ndarray) -> _Found:
    ids = np.asarray(cache.tokens[sequences]).astype(np.int64)
    documents = np.asarray(cache.documents[sequences])
    followed = np.zeros(ids.shape, dtype=bool)
    followed[:, :-1] = (ids[:, 1:] >= 0) & (documents[:, 1:] == documents[:, :-1])
    return _Found(np.maximum(ids, 0), rows, (rows >= 0) & followed, documents)


def _heldout_rows(token_index: np.ndarray, sequences: np.ndarray, context: int) -> np.ndarray:
    """The held-out row at each position, int64 [n, T], from the ascending ``token_index`` of these rows."""
    wanted = sequences[:, None] * context + np.arange(context)
    place = np.searchsorted(token_index, wanted)
    found = place < len(token_index)
    found[found] = token_index[place[found]] == wanted[found]
    return np.where(found, place, -1)


def _train_rows(cache: ActivationCache, sequences: np.ndarray) -> np.ndarray:
    """The training row at each position, int64 [n, T]; looks through the index of all training rows."""
    rows = np.full((len(sequences), cache.context), -1, dtype=np.int64)
    for start, token_index in _train_index_blocks(cache):
        sequence, position = np.divmod(token_index, cache.context)
        place = np.searchsorted(sequences, sequence).clip(max=len(sequences) - 1)
        here = np.flatnonzero(sequences[place] == sequence)
        rows[place[here], position[here]] = start + here
    return rows


def _train_index_blocks(cache: ActivationCache) -> Iterator[tuple[int, np.ndarray]]:
    index = cache.token_index("train")
    for start in range(0, len(cache), _BLOCK_ROWS):
        yield start, np.asarray(index[start : start + _BLOCK_ROWS]).astype(np.int64)
