"""Local files as text: globs and folders, in the order of their paths, identified by their content."""

import codecs
import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ....common.errors import UsageError
from ....common.lookups import exists, expanded
from ..config import FilesText
from .columns import Column
from .formats import FileFormat, JsonLinesFormat, ParquetFormat, TextFormat
from .source import Document

FORMAT_OF_EXTENSION = {
    **dict.fromkeys((".txt", ".md", ".rst", ".py", ".tex", ".html"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
_READ_BYTES = 1 << 22


class FilesSource:
    """Documents of the files that match ``config.paths``; numbers run on from file to file."""

    def __init__(self, config: FilesText, column: Column, checked: Mapping[str, Any] | None = None) -> None:
        """``checked``: the identity of the text of a former run, whose lines need not be parsed again."""
        self._column = column
        self._paths = _matching(config)
        self._checked = checked
        self._counts: list[int] | None = None  # documents of each file
        self._kinds = [_format_of(path, config.format) for path in self._paths]
        other = "chat" if config.chat is not None else "pretokenized"
        if "text" in self._kinds and (config.chat is not None or config.pretokenized is not None):
            raise UsageError(
                f"text.{other} has no effect on text files, such as "
                f"{self._paths[self._kinds.index('text')]}: leave it out, or give only .jsonl or .parquet"
            )
        if "column" in config.model_fields_set and set(self._kinds) == {"text"}:
            raise UsageError("text.column has no effect on text files: leave it out")
        self._identity: dict[str, Any] | None = None

    def __str__(self) -> str:
        first = self._paths[0]
        return str(first) if len(self._paths) == 1 else f"{len(self._paths)} files from {first} on"

    def identity(self) -> dict[str, Any]:
        """Names, sizes and sha256 of the files; every byte is read, and every record checked, the first time.

        Names are relative to the files' common folder, so a copy elsewhere is the same text.

        Raises:
            UsageError: a file that is not what its format says, with the line.
        """
        if self._identity is None:
            self._identity = self._make_identity()
            if self._identity != self._checked:
                for path, kind in zip(self._paths, self._kinds, strict=True):
                    self._reader(kind).check(path)
        return self._identity

    def num_documents(self) -> int:
        return sum(self._documents_of_files())

    def _documents_of_files(self) -> list[int]:
        if self._counts is None:
            pairs = zip(self._paths, self._kinds, strict=True)
            self._counts = [self._reader(kind).count(path) for path, kind in pairs]
        return self._counts

    def documents(self, start: int = 0) -> Iterator[Document]:
        number = start
        skip = start
        counts = self._documents_of_files() if start else [0] * len(self._paths)
        for path, kind, count in zip(self._paths, self._kinds, counts, strict=True):
            if skip and count <= skip:
                skip -= count
                continue
            for content in self._reader(kind).contents(path, skip):
                yield Document(number, content)
                number += 1
            skip = 0

    def _reader(self, kind: str) -> FileFormat:
        if kind == "text":
            return TextFormat()
        return JsonLinesFormat(self._column) if kind == "jsonl" else ParquetFormat(self._column)

    def _make_identity(self) -> dict[str, Any]:
        common = Path(os.path.commonpath([path.parent for path in self._paths]))
        digest = hashlib.sha256()
        num_bytes = 0
        for path, kind in zip(self._paths, self._kinds, strict=True):
            sha256, size = _digest(path, is_text=kind != "parquet")
            name = path.relative_to(common).as_posix()
            digest.update(f"{sha256} {size} {kind} {name}\n".encode())
            num_bytes += size
        columns = {} if set(self._kinds) == {"text"} else self._column.identity()
        facts = {"files": len(self._paths), "bytes": num_bytes, "sha256": digest.hexdigest()}
        return {"kind": "files", **columns, **facts}


def _matching(config: FilesText) -> list[Path]:
    found: set[Path] = set()
    for pattern in config.paths:
        named = expanded(pattern)  # a name with brackets in it may be no pattern
        there = exists(named)
        matched = [named] if there else [Path(name) for name in glob.glob(str(named), recursive=True)]  # noqa: PTH207
        files = [path for path in matched if path.is_file()]
        for folder in matched:
            if folder.is_dir() and (there or not _is_glob(pattern)):
                files += _readable_files(folder, config.format)
        if not files:
            raise UsageError(
                f"text.paths: no file matches {pattern!r} (looked from {Path.cwd()}); give files, "
                f"folders with {_extensions()} files, or globs like 'data/**/*.jsonl'"
            )
        found.update(path.resolve() for path in files)
    return sorted(found, key=lambda path: path.as_posix())


def _readable_files(folder: Path, chosen: str) -> list[Path]:
    """Files at any depth that the configured format can be; hidden ones are left out."""
    files = (path for path in folder.rglob("*") if path.is_file())
    shown = (p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    kinds = ((path, FORMAT_OF_EXTENSION.get(path.suffix.lower())) for path in shown)
    return [path for path, kind in kinds if kind is not None and chosen in ("auto", kind)]


def _format_of(path: Path, chosen: str) -> str:
    if chosen != "auto":
        return chosen
    kind = FORMAT_OF_EXTENSION.get(path.suffix.lower())
    if kind is None:
        raise UsageError(
            f"text: cannot tell the format of {path} from its extension (known: {_extensions()}); "
            "set text.format to text, jsonl or parquet"
        )
    return kind


def _digest(path: Path, *, is_text: bool) -> tuple[str, int]:
    """(sha256, size) of a file; text is checked to be UTF-8 on the way, so that no long run trips over it."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            if is_text:
                _check_utf8(decoder, block, path, size)
            size += len(block)
        if is_text:
            _check_utf8(decoder, b"", path, size)
    return digest.hexdigest(), size


def _check_utf8(decoder: codecs.IncrementalDecoder, block: bytes, path: Path, offset: int) -> None:
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        place = offset - pending + error.start
        raise UsageError(f"{path} is not UTF-8 text (byte {place}); convert it, or leave it out") from None


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _extensions() -> str:
    return ", ".join(FORMAT_OF_EXTENSION)
