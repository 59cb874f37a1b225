"""A folder of answers, each under the hash of its request, so that no call is made twice.

An entry is one JSON file. It holds the request (address, path and body, never a key), the answer, and the
answer's hash. An entry that is damaged, or that belongs to another request, counts as absent.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...store.durable import write_bytes
from ...store.untrusted_files import read_object

FORMAT_VERSION = 1
_MAX_ENTRY_BYTES = 64 << 20


class AnswerFolder:
    """The answers in ``folder``. Threads may use it together; processes hold its lock, :attr:`lock`, in turn.

    Attributes:
        damaged: files that were there and could not be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: set[Path] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was stored here yet."""
        return not (self.folder.is_dir() and any(self.folder.iterdir()))

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    def get(
        self, request: Mapping[str, Any], fits: Callable[[Mapping[str, Any]], bool]
    ) -> dict[str, Any] | None:
        """The stored answer to ``request``; None if there is none that can be used.

        Args:
            fits: whether an answer has the form that its reader expects.
        """
        path = self.place(request)
        try:
            entry = read_object(path, "it is asked for again", _MAX_ENTRY_BYTES)
        except FileNotFoundError:
            return None
        except UsageError:
            entry = {}
        answer = entry.get("answer")
        if (
            entry.get("format") != FORMAT_VERSION
            or entry.get("request") != json.loads(_canonical(request))
            or not isinstance(answer, dict)
            or entry.get("sha256") != _hash(answer)
            or not fits(answer)
        ):
            self.damaged.add(path)
            return None
        return answer

    def put(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Store ``answer``, durably, as a whole or not at all."""
        entry = {"format": FORMAT_VERSION, "request": request, "answer": answer, "sha256": _hash(answer)}
        write_bytes(self.place(request), _canonical(entry))

    def place(self, request: Mapping[str, Any]) -> Path:
        """The file of the answer to ``request``."""
        name = _hash(request)
        return self.folder / name[:2] / f"{name[2:]}.json"


def _canonical(value: Mapping[str, Any]) -> bytes:
    """One JSON text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
