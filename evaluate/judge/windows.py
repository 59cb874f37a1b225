"""Held-out text cut into windows that do not overlap, and in which of them each latent is active.

A window lies within one document and one sequence. Documents are cut from their first token in a sequence on,
so that a window is the same one for every latent and every SAE of a cache.

Legend: W windows, N measured rows, P pairs (row, latent).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...store import ActivationCache
from .activations import Places

Ints = NDArray[np.int64]

_SEQUENCES_AT_ONCE = 4096
_LEAST_SHARE = 0.5  # of a window's tokens must be there at the end of a document
_LEAST_MEASURED = 0.75  # of them must have a row, so that inactive means inactive


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows in reading order, all int64.

    Attributes:
        sequence, start, stop: [W], the tokens ``start:stop`` of a sequence.
        document: [W].
        of_place: [N], the window of each measured row; -1 for none.
    """

    sequence: Ints
    start: Ints
    stop: Ints
    document: Ints
    of_place: Ints

    def __len__(self) -> int:
        return len(self.sequence)


def cut_windows(cache: ActivationCache, places: Places, num_tokens: int) -> Windows:
    """Cut the documents of the measured rows into windows of ``num_tokens`` tokens.

    The last window of a document may have half as many. Windows with too few measured rows are left out.
    """
    sequence_N, position_N = np.divmod(places.token_index, cache.context)
    of_place = np.full(len(places), -1, dtype=np.int64)
    parts: list[tuple[Ints, Ints, Ints, Ints]] = []
    num_windows = 0
    sequences = np.unique(sequence_N)
    for first in range(0, len(sequences), _SEQUENCES_AT_ONCE):
        some = sequences[first : first + _SEQUENCES_AT_ONCE]
        window_nT, starts, documents = _cut(cache, some, num_tokens)
        here = np.flatnonzero((sequence_N >= some[0]) & (sequence_N <= some[-1]))
        window_P = window_nT[np.searchsorted(some, sequence_N[here]), position_N[here]]
        tokens_W = np.bincount(window_nT[window_nT >= 0], minlength=len(starts))
        rows_W = np.bincount(window_P[window_P >= 0], minlength=len(starts))
        good = (tokens_W >= _LEAST_SHARE * num_tokens) & (rows_W >= _LEAST_MEASURED * tokens_W) & (rows_W > 0)
        number = np.append(np.where(good, num_windows + np.cumsum(good) - 1, -1), -1)
        of_place[here] = number[window_P]
        start = starts[good] % cache.context
        parts.append((some[starts[good] // cache.context], start, start + tokens_W[good], documents[good]))
        num_windows += int(good.sum())
    empty = np.zeros(0, dtype=np.int64)
    sequence, start, stop, document = (
        (np.concatenate(arrays) for arrays in zip(*parts, strict=True)) if parts else (empty,) * 4
    )
    return Windows(sequence=sequence, start=start, stop=stop, document=document, of_place=of_place)


def _cut(cache: ActivationCache, sequences: Ints, num_tokens: int) -> tuple[Ints, Ints, Ints]:
    """The window of each token of some sequences, [n, T], -1 for padding; and of each window the flat index
    of its first token, and its document, [W] each.
    """
    documents = np.asarray(cache.documents[sequences]).astype(np.int64)
    documents[np.asarray(cache.tokens[sequences]) < 0] = -1
    begins = np.ones(documents.shape, dtype=bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    position = np.arange(documents.shape[1])
    first = np.maximum.accumulate(np.where(begins, position, 0), axis=1)
    begins |= (position - first) % num_tokens == 0
    begins &= documents >= 0
    window = np.where(documents >= 0, np.cumsum(begins).reshape(begins.shape) - 1, -1)
    starts = np.flatnonzero(begins)
    return window, starts, documents.reshape(-1)[starts]


@dataclass
class WindowCounts:
    """Counts, while blocks of rows stream by, in how many windows each latent is active.

    Rows come in reading order, so that only the last window of a block goes on in the next one.
    """

    windows: Windows
    num_latents: int
    active: Ints = field(init=False)
    _open: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.active = np.zeros(self.num_latents, dtype=np.int64)
        self._open = np.zeros(0, dtype=np.int64)

    def update(self, place_P: Ints, latent_P: Ints) -> None:
        """Add pairs of active latents and the places of their rows, of the next block."""
        window_P = self.windows.of_place[place_P]
        inside = window_P >= 0
        keys = np.unique(np.append(self._open, window_P[inside] * self.num_latents + latent_P[inside]))
        last = keys[-1] // self.num_latents if len(keys) else 0
        closed = keys // self.num_latents < last
        self._count(keys[closed])
        self._open = keys[~closed]

    def finish(self) -> Ints:
        """The number of windows of each latent, [F]."""
        self._count(self._open)
        self._open = self._open[:0]
        return self.active

    def _count(self, keys: Ints) -> None:
        self.active += np.bincount(keys % self.num_latents, minlength=self.num_latents)


def peaks_by_window(
    windows: Windows, rows: Ints, values: NDArray[np.float32]
) -> tuple[Ints, NDArray[np.float32]]:
    """The windows in which a latent is active, ascending, and the largest |activation| in each.

    Args:
        rows, values: places and activations of one latent, ascending.
    """
    window = windows.of_place[rows]
    inside = window >= 0
    window, sizes = window[inside], np.abs(values[inside])
    found, first = np.unique(window, return_index=True)
    return found, np.maximum.reduceat(sizes, first) if len(found) else sizes
