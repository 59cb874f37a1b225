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
from ...store.untrusted_json import check_writes_stay

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

    def check(self) -> None:
        """Make sure that answers can be stored in this folder, and nowhere else.

        Raises:
            UsageError: a link, or something that is no folder, stands where a folder of entries should be.
        """
        names = [f"{number:02x}" for number in range(256)]  # with which hashes begin
        check_writes_stay(self.folder, names, "give another --answers")
        for path in (self.folder / name for name in names):
            if path.exists() and not path.is_dir():
                raise UsageError(
                    f"{path} is a file, and answers are stored in a folder of this name: remove it, or give "
                    "another --answers"
                )

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
        """Store ``answer``, durably, as a whole or not at all.

        Raises:
            UsageError: something stands in its place that cannot be replaced.
        """
        entry = {"format": FORMAT_VERSION, "request": request, "answer": answer, "sha256": _hash(answer)}
        path = self.place(request)
        try:
            write_bytes(path, _canonical(entry))
        except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise UsageError(
                f"cannot store an answer in {path}: {error.filename} stands there ({error.strerror}); remove "
                "it, or give another --answers"
            ) from None

    def place(self, request: Mapping[str, Any]) -> Path:
        """The file of the answer to ``request``."""
        name = _hash(request)
        return self.folder / name[:2] / f"{name[2:]}.json"


def _canonical(value: Mapping[str, Any]) -> bytes:
    """One JSON text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
