"""What a command prints, with what would control the terminal escaped: names may be those of others.

Output, warnings and the log go through here, whoever writes them; JSON has nothing to escape.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from ..common.printable import printable

# tqdm goes down and up among several bars by writes that hold nothing else.
_MOVES_OF_BARS = re.compile(r"\n*(\x1b\[A)*")


class EscapingStream:
    """A text stream that writes to another one, which has all else: its encoding, its descriptor, its width.

    Lines and tabs stay, and so do the carriage returns that a progress bar begins with.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # as click finds out what a stream takes
            raise TypeError(f"expected text, got {type(text).__name__}")
        self._stream.write(self._escaped(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def _escaped(self, text: str) -> str:
        if _MOVES_OF_BARS.fullmatch(text):
            return text
        rest = text.lstrip("\r")
        shown = text[: len(text) - len(rest)] + printable(rest, keep="\n\t")
        return shown.encode(self._stream.encoding or "utf-8", "backslashreplace").decode(
            self._stream.encoding or "utf-8"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # what is written there would not be escaped
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Within the block what is printed, to either stream, is escaped."""
    with (
        redirect_stdout(cast(TextIO, EscapingStream(sys.stdout))),
        redirect_stderr(cast(TextIO, EscapingStream(sys.stderr))),
    ):
        yield
