"""The activations of chosen latents, and where in the text the measured rows are.

While the rows stream by, only the activations of the chosen latents are kept, as places and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...store import ActivationCache
from ...train import Pairs

_ROWS_AT_ONCE = 16384


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
        order = np.lexsort((rows, latent))
        latent, rows, values = latent[order], rows[order], values[order]
        first, end = (np.searchsorted(latent, self.latents, side) for side in ("left", "right"))
        return {
            wanted: LatentActivations(rows=rows[start:stop], values=values[start:stop])
            for wanted, start, stop in zip(self.latents, first, end, strict=True)
        }


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
