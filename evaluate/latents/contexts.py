"""Top activating contexts of sampled latents: where in the text they fire most, with the tokens around.

While the rows stream by, only the activations of the sampled latents are kept, as places and values. That is
a few dozen sparse columns in memory, and the contexts chosen from them are exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ...store import ActivationCache
from ...train import Pairs
from ..results import Context, Histogram, LatentResult

DecodeToken = Callable[[int], str]

_HISTOGRAM_BINS = 24
_ROWS_AT_ONCE = 16384


def sample_latents(density_F: Tensor, num_latents: int, seed: int) -> list[int]:
    """Choose alive latents, densest first: the densest, and one from each of ``num_latents`` equal rank
    groups.

    If no more than that are alive, all of them are chosen.
    """
    density = density_F.numpy()
    by_rank = np.argsort(-density, kind="stable")[: int((density > 0).sum())]
    if num_latents == 0 or len(by_rank) == 0:
        return []
    if len(by_rank) <= num_latents + 1:
        return [int(latent) for latent in by_rank]
    random = np.random.default_rng(seed)
    groups = np.array_split(np.arange(1, len(by_rank)), num_latents)
    ranks = [0, *(int(random.choice(group)) for group in groups)]
    return [int(by_rank[rank]) for rank in ranks]


@dataclass(frozen=True, kw_only=True)
class LatentActivations:
    """The activations of one latent that are not 0.

    Attributes:
        rows: int64, ascending; 0 is the first measured row.
        values: float32.
    """

    rows: np.ndarray
    values: np.ndarray

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The activation on each of ``rows``; 0 where the latent is not active."""
        if len(self.rows) == 0:
            return np.zeros(len(rows), dtype=np.float32)
        place = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        return np.where(self.rows[place] == rows, self.values[place], np.float32(0))


@dataclass
class ActivationStream:
    """Gathers the activations of chosen latents from blocks of codes."""

    latents: Sequence[int]
    _parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def update(self, codes: Pairs, row_B: np.ndarray) -> None:
        """Add the codes of the rows ``row_B`` int64 [B], counted from the first measured one."""
        latent, value = codes.latent.cpu().numpy(), codes.value.float().cpu().numpy()
        wanted = np.flatnonzero(np.isin(latent, self.latents) & (value != 0))
        rows = row_B[codes.rows().cpu().numpy()[wanted]]
        self._parts.append((latent[wanted], rows, value[wanted]))

    def columns(self) -> dict[int, LatentActivations]:
        """The activations gathered so far, by latent."""
        if not self._parts:
            empty = LatentActivations(rows=np.zeros(0, dtype=np.int64), values=np.zeros(0, dtype=np.float32))
            return dict.fromkeys(self.latents, empty)
        latent, rows, values = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        found = {}
        for wanted in self.latents:
            here = np.flatnonzero(latent == wanted)
            here = here[np.argsort(rows[here], kind="stable")]
            found[wanted] = LatentActivations(rows=rows[here], values=values[here])
        return found


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where in the text the measured rows are: the rows from ``first_row`` on of ``split``.

    Attributes:
        token_index: int64 [N], sequence * context + position of each measured row.
        document: int32 [N], the document of each measured row.
        order: int64 [N], the permutation that sorts ``token_index``.
    """

    split: str
    first_row: int
    token_index: np.ndarray
    document: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.token_index)

    def find(self, token_index: np.ndarray) -> np.ndarray:
        """The place (row - first_row) of each token among the measured rows; -1 where no row holds it."""
        place = np.searchsorted(self.token_index, token_index, sorter=self.order).clip(max=len(self) - 1)
        row = self.order[place]
        return np.where(self.token_index[row] == token_index, row, -1)


def find_places(cache: ActivationCache, split: str, first_row: int, num_rows: int) -> Places:
    """Find the places of rows ``first_row`` to ``first_row + num_rows`` of ``split``."""
    token_index = np.asarray(cache.token_index(split)[first_row : first_row + num_rows]).astype(np.int64)
    document = np.empty(len(token_index), dtype=np.int32)
    for start in range(0, len(token_index), _ROWS_AT_ONCE):
        sequence, position = np.divmod(token_index[start : start + _ROWS_AT_ONCE], cache.context)
        needed, where = np.unique(sequence, return_inverse=True)
        document[start : start + _ROWS_AT_ONCE] = cache.documents[needed][where, position]
    return Places(
        split=split,
        first_row=first_row,
        token_index=token_index,
        document=document,
        order=np.argsort(token_index, kind="stable"),
    )


def choose_peaks(
    values: np.ndarray, documents: np.ndarray, token_index: np.ndarray, most: int, apart: int
) -> np.ndarray:
    """Choose the largest ``values``, at most one per document and neighbourhood; ties go to the earlier
    token.

    Args:
        values, documents, token_index: [P], one per activation.
        apart: two chosen activations of one document are more than this many tokens apart.
    """
    order = np.lexsort((token_index, -values))
    documents, token_index = documents[order], token_index[order]
    free = np.ones(len(order), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < most and free.any():
        first = int(free.argmax())
        chosen.append(int(order[first]))
        near = np.abs(token_index - token_index[first]) <= apart
        free &= ~(near & (documents == documents[first]))
    return np.asarray(chosen, dtype=np.int64)


def describe_latent(
    cache: ActivationCache,
    places: Places,
    latent: int,
    column: LatentActivations,
    *,
    rank: int,
    num_contexts: int,
    radius: int,
    decode_token: DecodeToken,
    num_rows: int | None = None,
) -> LatentResult:
    """Describe one latent: its density, activations and top contexts. Negative codes count by size.

    ``num_rows`` rows were encoded; None: all that have a place.
    """
    sizes = np.abs(column.values)
    peaks = choose_peaks(
        sizes, places.document[column.rows], places.token_index[column.rows], num_contexts, 2 * radius
    )
    largest = float(sizes.max(initial=0))
    counts, edges = np.histogram(sizes, _HISTOGRAM_BINS, (0, largest))
    return LatentResult(
        index=latent,
        rank=rank,
        density=len(column.rows) / (num_rows or len(places)),
        max_activation=_short(largest),
        mean_activation=_short(float(sizes.mean())) if len(column.values) else 0.0,
        activation_histogram=Histogram(edges=[_short(e) for e in edges], counts=[int(c) for c in counts]),
        contexts=[
            read_context(cache, places, column, int(column.rows[peak]), radius, decode_token)
            for peak in peaks
        ],
    )


def read_context(
    cache: ActivationCache,
    places: Places,
    column: LatentActivations,
    place: int,
    radius: int,
    decode_token: DecodeToken,
) -> Context:
    """Read the tokens of the document within ``radius`` of the measured row ``place``, with activations."""
    sequence, position = divmod(int(places.token_index[place]), cache.context)
    document = int(places.document[place])
    ids, documents = cache.tokens[sequence], cache.documents[sequence]
    window = np.arange(max(0, position - radius), min(cache.context, position + radius + 1))
    # Packed sequences hold several documents: the window ends where its own ends.
    window = window[(ids[window] >= 0) & (documents[window] == document)]
    rows = places.find(sequence * cache.context + window)
    return Context(
        row=places.first_row + place,
        sequence=sequence,
        position=position,
        document=document,
        peak=int(np.flatnonzero(window == position)[0]),
        token_ids=[int(i) for i in ids[window]],
        tokens=[_writable(decode_token(int(i))) for i in ids[window]],
        activations=[
            None if row < 0 else _short(float(value))
            for row, value in zip(rows, column.at(rows), strict=True)
        ],
    )


def _writable(text: str) -> str:
    """``text`` without half surrogates: a tokenizer may give them for half a character."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _short(value: float) -> float:
    """``value`` with four significant digits: enough for a reader, at a third of the bytes."""
    return float(f"{value:.4g}")
