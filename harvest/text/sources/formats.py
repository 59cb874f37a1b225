"""How one file becomes documents: text (one document), JSON lines, Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ....common.errors import UsageError
from ....store.untrusted_model import files_explained
from .columns import Column, missing_column
from .source import Content

_DAMAGED, _ADVICE = "cannot be read as Parquet", ": make, copy or download it again"


class FileFormat(Protocol):
    """Documents of one file, in its own order."""

    def count(self, path: Path) -> int:
        """How many documents the file has."""
        ...

    def check(self, path: Path) -> None:
        """Refuse, before any long work, a file whose documents cannot all be read; it is UTF-8 if text.

        Raises:
            UsageError: with the line.
        """
        ...

    def contents(self, path: Path, skip: int) -> Iterator[Content]:
        """Contents of the documents from number ``skip`` of the file on."""
        ...


class TextFormat:
    """The whole file is one document, UTF-8."""

    def count(self, path: Path) -> int:
        return 1

    def check(self, path: Path) -> None:
        pass

    def contents(self, path: Path, skip: int) -> Iterator[Content]:
        if skip == 0:
            yield path.read_text("utf-8-sig")


class JsonLinesFormat:
    """One JSON object per line; blank lines do not count."""

    def __init__(self, column: Column) -> None:
        self.column = column

    def count(self, path: Path) -> int:
        return sum(1 for _ in _lines(path))

    def check(self, path: Path) -> None:
        for _ in self.contents(path, 0):
            pass

    def contents(self, path: Path, skip: int) -> Iterator[Content]:
        for position, (number, line) in enumerate(_lines(path)):
            if position >= skip:
                yield self._read(line, f"{path}:{number}")

    def _read(self, line: str, where: str) -> Content:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not valid JSON: {error}; mend or remove this line") from None
        if not isinstance(record, dict):
            raise UsageError(f"{where}: expected a JSON object, got {type(record).__name__}")
        if self.column.name not in record:
            raise missing_column(where, self.column, record)
        return self.column.read(record[self.column.name], where)


class ParquetFormat:
    """One document per row."""

    def __init__(self, column: Column) -> None:
        self.column = column

    def count(self, path: Path) -> int:
        return int(self._open(path).metadata.num_rows)

    def check(self, path: Path) -> None:
        with files_explained(f"{path} {_DAMAGED}", _ADVICE):
            names = self._open(path).schema_arrow.names
        if self.column.name not in names:
            raise missing_column(str(path), self.column, names)

    def contents(self, path: Path, skip: int) -> Iterator[Content]:
        self.check(path)
        file = self._open(path)
        row = 0
        with files_explained(f"{path} {_DAMAGED}", _ADVICE):
            for group in range(file.num_row_groups):
                group_rows = file.metadata.row_group(group).num_rows
                if row + group_rows <= skip:
                    row += group_rows
                    continue
                for batch in file.iter_batches(1024, row_groups=[group], columns=[self.column.name]):
                    for value in batch.column(0).to_pylist():
                        if row >= skip:
                            yield self.column.read(value, f"{path}, row {row}")
                        row += 1

    def _open(self, path: Path) -> Any:
        import pyarrow.parquet

        with files_explained(f"{path} is not a Parquet file"):
            return pyarrow.parquet.ParquetFile(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of every line that is not blank."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, line
