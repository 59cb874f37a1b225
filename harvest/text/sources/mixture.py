"""Several data sets mixed by weight: which one a document comes from is a pure function of (seed, number).

Weights are shares of the documents, or of the tokens. For the latter a part is drawn with a probability
proportional to weight / (its mean number of tokens in a document), which is measured once, on the first
documents of the part, and is part of the text's identity. So a harvest still begins anywhere without reading
what comes before; shares are as exact as those documents are typical of their part.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....common.errors import UsageError
from ....store.keys import mixture_draws
from ..config import MixtureText
from .source import Document, TextSource

_BLOCK = 1 << 16  # numbers drawn at a time
_MOST_NUMBERS = 1 << 31  # a cache stores them as int32


class MixtureSource:
    """Document n is the next one of the part that n draws.

    A number that draws a part without more documents is left out. So the others go on in the proportion of
    their weights, and a harvest continues anywhere without knowing when a part ended.
    """

    def __init__(
        self,
        config: MixtureText,
        parts: Sequence[TextSource],
        seed: int,
        lengths: Sequence[float] | None = None,
    ) -> None:
        """``lengths``: the mean number of tokens in a document of each part, if weights are of tokens."""
        self._parts, self._seed = list(parts), seed
        self._weights = [part.weight for part in config.parts]
        self._lengths = lengths
        drawn = np.array(self._weights) / (1.0 if lengths is None else np.array(lengths))
        self._bounds = np.cumsum(drawn) / drawn.sum()
        self._stops = config.when_one_ends == "stop"

    def __str__(self) -> str:
        shares = np.array(self._weights) / sum(self._weights)
        of_tokens = "" if self._lengths is None else " of the tokens"
        parts = " + ".join(f"{share:.0%} {part}" for share, part in zip(shares, self._parts, strict=True))
        return parts + of_tokens

    def identity(self) -> dict[str, Any]:
        """The draws depend on the harvest's seed, which is part of every identity."""
        parts: list[dict[str, Any]] = [
            {"weight": weight, "text": part.identity()}
            for weight, part in zip(self._weights, self._parts, strict=True)
        ]
        identity = {"kind": "mixture", "when_one_ends": "stop" if self._stops else "continue", "parts": parts}
        if self._lengths is None:
            return identity
        for part, length in zip(parts, self._lengths, strict=True):
            part["tokens_per_document"] = length
        return {**identity, "by": "tokens"}

    def num_documents(self) -> int | None:
        counts = [part.num_documents() for part in self._parts]
        if self._stops:  # at the first part that is asked for one more than it has
            ends = [
                None if count is None else self._number_of(part, count) for part, count in enumerate(counts)
            ]
            return None if None in ends else min(end for end in ends if end is not None)
        lasts = [count and self._number_of(part, count - 1) + 1 for part, count in enumerate(counts)]
        return None if None in lasts else max(last for last in lasts if last is not None)

    def documents(self, start: int = 0) -> Iterator[Document]:
        streams = []
        for part, before in zip(self._parts, self._drawn_before(start).tolist(), strict=True):
            stream = part.documents(max(0, before - 1))
            if before and next(stream, None) is None and self._stops:
                return  # it ended before ``start``
            streams.append(stream)
        alive = np.ones(len(streams), dtype=np.bool_)
        for first, drawn in self._blocks(start):
            for place in np.flatnonzero(alive[drawn]).tolist():
                part = drawn[place]
                document = next(streams[part], None) if alive[part] else None
                if document is not None:
                    yield Document(first + place, document.content)
                elif alive[part]:
                    alive[part] = False
                    if self._stops or not alive.any():
                        return

    def _number_of(self, part: int, index: int) -> int:
        """The number that draws document ``index`` of ``part``."""
        done = 0
        for first, drawn in self._blocks(0):
            places = np.flatnonzero(drawn == part)
            if index < done + len(places):
                return first + int(places[index - done])
            done += len(places)
        raise AssertionError("the blocks end with an error")

    def _blocks(self, start: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(first number, the part that each number draws, int64 [n]), from ``start`` on."""
        for first in range(start, _MOST_NUMBERS, _BLOCK):
            numbers = np.arange(first, min(first + _BLOCK, _MOST_NUMBERS))
            yield first, self._draw(numbers)
        raise UsageError(
            f"{self}: a cache holds at most {_MOST_NUMBERS} documents; a part of a small weight that goes on "
            "alone uses up numbers fast: raise its weight, or set text.when_one_ends=stop"
        )

    def _draw(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.searchsorted(self._bounds, mixture_draws(self._seed, numbers), side="right")
        return np.minimum(found, len(self._parts) - 1).astype(np.int64)

    def _drawn_before(self, start: int) -> NDArray[np.int64]:
        """How many documents of each part come before number ``start``."""
        counts = np.zeros(len(self._parts), dtype=np.int64)
        for first in range(0, min(start, _MOST_NUMBERS), _BLOCK):
            drawn = self._draw(np.arange(first, min(first + _BLOCK, start)))
            counts += np.bincount(drawn, minlength=len(counts))
        return counts
