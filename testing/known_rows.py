"""Rows whose every value is known, so that a cache made of them can be checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class KnownRows:
    """S sequences of a context, and the raw rows of the positions that are kept.

    Attributes:
        ids: int32 [S, context], token ids.
        documents: int32 [S, context], the document of each position.
        keep: bool [S, context], which positions become rows.
        activations: hook -> float32 [keep.sum(), D], in C order of ``keep``.
    """

    ids: NDArray[np.int32]
    documents: NDArray[np.int32]
    keep: NDArray[np.bool_]
    activations: dict[str, NDArray[np.float32]]

    @property
    def hooks(self) -> dict[str, int]:
        return {hook: rows.shape[1] for hook, rows in self.activations.items()}

    @property
    def context(self) -> int:
        return int(self.ids.shape[1])

    def raw(self, hook: str, token_index: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The rows [n, D] of some token indices."""
        places = np.searchsorted(np.flatnonzero(self.keep), np.asarray(token_index).astype(np.int64))
        return self.activations[hook][places]

    def batches(self, sequences: int, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(first sequence, arguments of write_sequences) in batches of so many sequences."""
        rows = np.concatenate([[0], np.cumsum(self.keep.sum(axis=1))])
        for first in range(start, len(self.ids), sequences):
            last = min(first + sequences, len(self.ids))
            part = slice(first, last)
            kept = slice(rows[first], rows[last])
            yield (
                first,
                {
                    "ids": self.ids[part],
                    "documents": self.documents[part],
                    "keep": self.keep[part],
                    "activations": {hook: x[kept] for hook, x in self.activations.items()},
                },
            )


def make_known_rows(
    sequences: int = 60, context: int = 16, hooks: Mapping[str, int] | None = None, seed: int = 0
) -> KnownRows:
    """Random rows of random norms; four fifths of the positions are kept, three sequences are a document."""
    rng = np.random.default_rng(seed)
    keep = rng.random((sequences, context)) < 0.8
    documents = np.repeat(np.arange(sequences) // 3, context).reshape(sequences, context)
    widths = hooks or {"resid_post.1": 24, "mlp_out.0": 17}
    activations = {
        hook: (rng.normal(size=(keep.sum(), width)) * rng.lognormal(size=(keep.sum(), 1)) + 0.3).astype(
            np.float32
        )
        for hook, width in widths.items()
    }
    ids = rng.integers(0, 1000, (sequences, context))
    return KnownRows(ids.astype(np.int32), documents.astype(np.int32), keep, activations)


def cache_bytes(path: Path) -> dict[str, bytes]:
    """Every file of a cache by its path, but for the volatile facts."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in files
        if file.relative_to(path).parts[0] != "provenance"
    }
