"""The rows, the journal and the records of a harvest whose processes share no folder, below ``.harvest/``.

See ``writing/pieces.py``. They go with the claim of the harvest, before it does.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..manifest import MAX_MANIFEST_BYTES
from ..writing.pieces import Extent, is_right
from .cache_objects import HARVEST_WORK
from .places.failures import MissingObjectError, RemoteChangedError, WrongBytesError
from .places.remote_folder import RemoteFolder

_JOURNAL = "journal.json"
_RUN = "run"  # says which run writes the journal
_ROWS, _DONE = "rows", "done"  # the first parts of the keys of pieces and of records
_RECORDS_AT_ONCE = 8
_RECORD = re.compile(r"[0-9a-z][0-9a-z._]{0,99}\.json")  # names of records become names of files here


class BucketPieces:
    """The :class:`.PieceStore` at ``place``, the place of the cache. Threads may share it."""

    def __init__(self, place: RemoteFolder) -> None:
        self._place, self._folder = place, place.child(HARVEST_WORK)
        self._run = secrets.token_hex(16).encode()

    def __str__(self) -> str:
        return self._folder.url

    def put(self, piece: str, name: str, path: Path) -> str:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self._folder.upload(path, _key(piece, name), size=path.stat().st_size, sha256=sha256)
        return sha256

    def fetch(self, piece: str, name: str, path: Path, size: int, sha256: str) -> None:
        path.unlink(missing_ok=True)
        with self._loss_explained():
            self._folder.download(_key(piece, name), path, size=size, sha256=sha256, durable=False)

    def read(self, piece: str, name: str, row_bytes: int, extent: Extent) -> NDArray[np.uint8]:
        key, length = _key(piece, name), int(extent.counts.sum()) * row_bytes

        def once() -> NDArray[np.uint8]:
            content = self._folder.read_range_once(key, extent.start * row_bytes, length)
            rows = np.frombuffer(content, np.uint8)
            if not is_right(rows, row_bytes, extent):
                raise WrongBytesError(f"{self}/{key} is damaged: its rows do not match their crc32c")
            return rows

        with self._loss_explained():
            return self._folder.repeat(once)

    def read_journal(self) -> bytes | None:
        return self._read(_JOURNAL)

    def take_over(self) -> None:
        self._folder.put(_RUN, self._run)

    def write_journal(self, content: bytes) -> None:
        if self._read(_RUN) != self._run:
            raise RemoteChangedError(
                f"another run of this harvest goes on with what is at {self}, or somebody removed it: this "
                "run stops, because only one can write there"
            )
        self._folder.put(_JOURNAL, content)

    def _read(self, key: str) -> bytes | None:
        try:
            return self._folder.get(key, MAX_MANIFEST_BYTES)
        except MissingObjectError:
            return None

    def keep_only(self, pieces: Sequence[str]) -> None:
        wanted = set(pieces)
        there = (info.key for info in self._folder.objects(must_show=_JOURNAL))
        rows = [key for key in there if key.startswith(f"{_ROWS}/")]
        self._folder.delete([key for key in rows if key.split("/")[1].partition("_")[0] not in wanted])

    def put_record(self, name: str, content: bytes) -> None:
        self._folder.put(f"{_DONE}/{name}", content)

    def read_records(self, known: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        there = (info.key for info in self._folder.objects(must_show=_JOURNAL))
        names = [key.partition("/")[2] for key in there if key.startswith(f"{_DONE}/")]
        wanted = [name for name in names if name not in known and _RECORD.fullmatch(name)]
        with ThreadPoolExecutor(_RECORDS_AT_ONCE, "saecache-records") as threads:
            contents = threads.map(
                lambda name: self._folder.get(f"{_DONE}/{name}", MAX_MANIFEST_BYTES), wanted
            )
            yield from zip(wanted, contents, strict=True)

    @contextmanager
    def _loss_explained(self) -> Iterator[None]:
        """
        Raises:
            RemoteChangedError: somebody removed a piece.
        """
        try:
            yield
        except MissingObjectError as error:
            raise RemoteChangedError(
                f"{error}: it has rows of this harvest, which somebody removed. To begin again from the "
                f"first token, free the place ('saecache cache rm {self._place.url}') and harvest again"
            ) from None


def _key(piece: str, name: str) -> str:
    return f"{_ROWS}/{piece}_{name}"


def remove_pieces(place: RemoteFolder) -> None:
    """Remove everything that a harvest has kept at ``place`` while it ran."""
    folder = place.child(HARVEST_WORK)
    folder.delete([_JOURNAL])  # first: a harvest that finds it needs the others
    folder.delete([info.key for info in folder.objects()])
