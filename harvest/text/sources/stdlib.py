"""The running Python's own standard library as text."""

from collections.abc import Iterator
from typing import Any

from ....common.errors import UsageError
from ...builtin.stdlib_text import stdlib_documents, stdlib_fingerprint
from .source import Document


class StdlibSource:
    """Source and documentation of the standard library; differs between Python versions."""

    def __init__(self) -> None:
        try:
            self._fingerprint = stdlib_fingerprint()
            self._texts = [text for _, text in stdlib_documents()]  # some ten megabytes
        except FileNotFoundError as error:
            raise UsageError(f"text.name=stdlib: {error}; use text.kind=files instead") from None

    def __str__(self) -> str:
        return "the standard library"

    def identity(self) -> dict[str, Any]:
        return {"kind": "builtin", "name": "stdlib", "sha256": self._fingerprint}

    def num_documents(self) -> int:
        return len(self._texts)

    def documents(self, start: int = 0) -> Iterator[Document]:
        for number in range(start, len(self._texts)):
            yield Document(number, self._texts[number])
