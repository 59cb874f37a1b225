"""The text of the rows that latents are looked at on, as passages: runs of tokens of one document.

Packed sequences hold several documents, and the documents of one split only in part. So the text is kept as
the runs of one sequence and one document that hold at least one of the rows, one after the other. A token of
it is named by its offset, and whatever happens in a context, which ends where its document ends, is near.
Legend: N rows, L tokens of the text, P passages.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...store import ActivationCache

_TOKENS_AT_ONCE = 1 << 20

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Passages:
    """The text, and where it is from.

    Attributes:
        context: positions of a sequence of the cache.
        ids: int32 [L], token ids.
        ptr: int64 [P + 1]; the tokens of passage ``p`` are ``ptr[p]:ptr[p + 1]``.
        sequence, position: int64 [P], the sequence, and the position in it of the passage's first token.
        document: int32 [P].
    """

    context: int
    ids: NDArray[np.int32]
    ptr: Ints
    sequence: Ints
    position: Ints
    document: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    def passage_of(self, offset: Ints) -> Ints:
        """The passage of each token of the text."""
        return np.searchsorted(self.ptr, offset, side="right") - 1

    def window(self, offset: Ints, radius: int) -> tuple[Ints, Ints]:
        """First token and end of the window of ``radius`` tokens on each side, within the passage."""
        passage = self.passage_of(offset)
        return np.maximum(offset - radius, self.ptr[passage]), np.minimum(
            offset + radius + 1, self.ptr[passage + 1]
        )

    @cached_property
    def token_index(self) -> Ints:
        """sequence * context + position of each token: int64 [L], ascending."""
        first = self.sequence * self.context + self.position
        return np.repeat(first - self.ptr[:-1], np.diff(self.ptr)) + np.arange(len(self.ids))

    @cached_property
    def document_of(self) -> NDArray[np.int32]:
        """The document of each token: int32 [L]."""
        return np.repeat(self.document, np.diff(self.ptr))

    def find(self, token_index: Ints) -> Ints:
        """The offset of each token, all of which the text holds.

        Raises:
            UsageError: it lacks one.
        """
        offset = np.searchsorted(self.token_index, token_index)
        held = offset < len(self)
        held[held] = self.token_index[offset[held]] == token_index[held]
        if not held.all():
            raise UsageError(
                f"{int((~held).sum()):,} of {len(held):,} rows of the cache stand on padding (a token id "
                "below 0), so that latents have no text there: harvest again, or evaluate without latents "
                "(num_latents=0, all_latents=false)"
            )
        return offset


def find_passages(cache: ActivationCache, token_index: Ints) -> Passages:
    """Find the text around the rows of these tokens, int64 [N], each sequence * context + position."""
    context, wanted = cache.context, np.sort(token_index)
    sequences = np.unique(wanted // context)
    parts = [
        _runs(cache, sequences[start : start + max(1, _TOKENS_AT_ONCE // context)], wanted)
        for start in range(0, len(sequences), max(1, _TOKENS_AT_ONCE // context))
    ]
    ids, lengths, sequence, position, document = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Passages(
        context=context,
        ids=ids,
        ptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        sequence=sequence,
        position=position,
        document=document,
    )


def _runs(cache: ActivationCache, sequences: Ints, wanted: Ints) -> tuple[NDArray[np.generic], ...]:
    """The runs of some sequences that hold one of the tokens ``wanted``, ascending: ids, and of each run its
    length, sequence, position and document.
    """
    ids, documents = cache.tokens.gather(sequences), cache.documents.gather(sequences)
    index = sequences[:, None] * cache.context + np.arange(cache.context)
    measured = wanted[np.searchsorted(wanted, index).clip(max=len(wanted) - 1)] == index
    begins = np.ones(ids.shape, dtype=bool)
    padding = ids < 0
    begins[:, 1:] = (documents[:, 1:] != documents[:, :-1]) | (padding[:, 1:] != padding[:, :-1])
    run = np.cumsum(begins.ravel()) - 1
    kept_runs = np.zeros(run[-1] + 1, dtype=bool)
    kept_runs[run[measured.ravel()]] = True
    kept = (kept_runs[run] & ~padding.ravel()).reshape(ids.shape)
    row, column = np.nonzero(begins & kept)
    return (
        ids[kept],
        np.bincount(run[kept.ravel()], minlength=len(kept_runs))[run.reshape(ids.shape)[row, column]],
        sequences[row],
        column.astype(np.int64),
        documents[row, column],
    )
