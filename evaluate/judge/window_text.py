"""The text of a window, token by token, and with tokens highlighted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...store import ActivationCache
from .activations import LatentActivations, Places
from .windows import Windows

Decode = Callable[[Sequence[int]], str]
OPEN, CLOSE = "<<", ">>"
_BROKEN = "\ufffd"  # what tokenizers give for a part of a character
_STRONGEST = 10


@dataclass(frozen=True, kw_only=True)
class Example:
    """One window, as prompts show it.

    Attributes:
        text: its text.
        highlighted: the same with ``<<`` and ``>>`` around the highlighted tokens; neighbours share them.
        tokens: the highlighted tokens, the strongest first, each with a strength from 1 to 10.
    """

    text: str
    highlighted: str
    tokens: Sequence[tuple[str, int]]


@dataclass
class WindowReader:
    """Reads windows of one cache; ``decode`` turns token ids into text."""

    cache: ActivationCache
    places: Places
    windows: Windows
    decode: Decode
    _pieces: dict[int, list[str]] = field(default_factory=dict)

    def activations(self, column: LatentActivations, window: int) -> NDArray[np.float32]:
        """|activation| of a latent on each token of a window, [T]; NaN on tokens that have no row."""
        sequence, position = self._span(window)
        row = self.places.find(sequence * self.cache.context + position)
        found: NDArray[np.float32] = np.where(row < 0, np.float32("nan"), np.abs(column.at(row)))
        return found

    def read(
        self, window: int, marked: NDArray[np.bool_], strength: NDArray[np.float32], largest: float
    ) -> Example:
        """A window with the ``marked`` tokens [T] highlighted.

        Args:
            strength: [T]; ``largest`` is shown as 10.
        """
        pieces = self.pieces(window)
        return Example(
            text=_plain("".join(pieces)),
            highlighted=_highlight(pieces, marked),
            tokens=[
                (pieces[i], max(1, min(_STRONGEST, round(_STRONGEST * float(strength[i]) / largest))))
                for i in sorted(np.flatnonzero(marked), key=lambda i: (-strength[i], i))
                if pieces[i] and largest > 0
            ],
        )

    def pieces(self, window: int) -> list[str]:
        """The text of each token of a window; nothing for a special token."""
        if window not in self._pieces:
            sequence, position = self._span(window)
            ids = [int(token) for token in self.cache.tokens[sequence][position]]
            self._pieces[window] = split_text(ids, self.decode)
        return self._pieces[window]

    def _span(self, window: int) -> tuple[int, NDArray[np.int64]]:
        start, stop = int(self.windows.start[window]), int(self.windows.stop[window])
        return int(self.windows.sequence[window]), np.arange(start, stop)


def split_text(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text of ``ids`` in one piece per token; the pieces together are ``decode(ids)``.

    A character that several tokens share belongs to the last of them.
    """
    whole = decode(ids)
    pieces = [decode([token]) for token in ids]
    if "".join(pieces) == whole and _BROKEN not in whole:
        return pieces
    pieces, shown = [], 0
    for end in range(1, len(ids) + 1):
        text = decode(ids[:end])
        ready = len(text) if end == len(ids) else len(text.rstrip(_BROKEN))
        ready = max(shown, min(ready, len(whole)))
        pieces.append(whole[shown:ready])
        shown = ready
    return pieces


def _plain(piece: str) -> str:
    """``piece`` without what looks like the marks of a highlight."""
    return piece.replace(OPEN, "< <").replace(CLOSE, "> >")


def _highlight(pieces: Sequence[str], marked: NDArray[np.bool_]) -> str:
    """The pieces in one text, with every run of marked ones in marks; spaces stay outside."""
    text = ""
    i = 0
    while i < len(pieces):
        end = i + 1
        while end < len(pieces) and marked[end] == marked[i]:
            end += 1
        run = "".join(pieces[i:end])
        core = run.strip() or run  # white space alone is worth marking: latents respond to it
        if marked[i] and run:
            before, _, after = run.partition(core)
            text += f"{before}{OPEN}{_plain(core)}{CLOSE}{after}"
        else:
            text += _plain(run)
        i = end
    return text
