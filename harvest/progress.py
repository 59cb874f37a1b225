"""How far a harvest is: what the store keeps at every commit, and what the manifest counts in the end."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .packing import Cursor, Role, Sequences


@dataclass
class Progress:
    """Everything but the rows that is needed to continue exactly."""

    cursor: Cursor = field(default_factory=Cursor)
    tokens: int = 0  # read so far, padding not counted
    last_document: int = -1
    documents: int = 0
    excluded: dict[str, int] = field(default_factory=lambda: {"bos": 0, "separator": 0, "sink": 0})
    padding: int = 0
    batch_size: int | None = None
    median_norms: dict[str, float] | None = None
    seconds: float = 0.0

    def add(self, sequences: Sequences, by_role: NDArray[np.bool_], keep: NDArray[np.bool_]) -> None:
        """Take note of written sequences: ``by_role`` [n, context] is what roles keep, ``keep`` what was
        stored.
        """
        roles = sequences.roles
        self.cursor = sequences.cursors[-1]
        self.tokens += int((roles != Role.PADDING).sum())
        self.padding += int((roles == Role.PADDING).sum())
        self.excluded["bos"] += int(((roles == Role.BOS) & ~by_role).sum())
        self.excluded["separator"] += int(((roles == Role.SEPARATOR) & ~by_role).sum())
        self.excluded["sink"] += int((by_role & ~keep).sum())
        seen = np.unique(sequences.documents)
        new = seen[seen > self.last_document]
        self.documents += len(new)
        self.last_document = int(max(self.last_document, seen[-1]))

    def counts(self, num_tokens: int) -> dict[str, int]:
        """For the manifest."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "tokens_missing": max(0, num_tokens - self.tokens),
            "padding": self.padding,
            **{f"excluded_{reason}": count for reason, count in self.excluded.items()},
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cursor": list(self.cursor)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; nothing there is the beginning."""
        if not values:
            return cls()
        return cls(**{**values, "cursor": Cursor(*values["cursor"])})
