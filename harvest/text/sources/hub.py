"""A dataset of the Hugging Face hub, streamed: never more on disk or in memory than is being read."""

from collections.abc import Iterator
from typing import Any

from ....common.errors import SaecacheError, UsageError
from ...hub import network_errors, resolve_commit
from ..config import HubText
from .columns import Column, missing_column
from .source import Document


class HubSource:
    """Documents in the order of the dataset's files, at one commit."""

    def __init__(self, config: HubText, column: Column, pinned: dict[str, Any] | None = None) -> None:
        """``pinned``: the text identity of a harvest to be continued; it settles a revision left open."""
        self._config, self._column = config, column
        same = pinned is not None and pinned.get("dataset") == config.dataset
        revision = pinned.get("revision") if same and pinned and config.revision is None else config.revision
        self._commit = resolve_commit(config.dataset, revision)

    def __str__(self) -> str:
        subset = f" ({self._config.subset})" if self._config.subset else ""
        return f"dataset {self._config.dataset}{subset}, split {self._config.split}"

    def identity(self) -> dict[str, Any]:
        config = self._config
        return {
            "kind": "hub",
            "dataset": config.dataset,
            "subset": config.subset,
            "split": config.split,
            "revision": self._commit,
            **self._column.identity(),
        }

    def num_documents(self) -> int | None:
        return None  # the hub's own figure is not always there, and not always right

    def documents(self, start: int = 0) -> Iterator[Document]:
        column = self._column
        stream = self._load()
        if start:
            stream = stream.skip(start)
        number = start
        try:
            for record in stream:
                if column.name not in record:
                    raise missing_column(str(self), column, record)
                yield Document(number, column.read(record[column.name], f"{self}, document {number}"))
                number += 1
        except UsageError:
            raise
        except stream_errors() as error:  # datasets has retried by itself before it gives up
            raise SaecacheError(
                f"{self}: reading stopped at document {number}: {error}{_hint(error)}; run the same command "
                "again to continue"
            ) from error

    def _load(self) -> Any:
        import datasets

        config = self._config
        try:
            return datasets.load_dataset(
                config.dataset, config.subset, split=config.split, revision=self._commit, streaming=True
            )
        except stream_errors() as error:
            raise UsageError(f"cannot open {self}: {error}{_hint(error)}") from None


def _hint(error: Exception) -> str:
    if "scripts are no longer supported" in str(error):
        return "; set text.revision=refs/convert/parquet to read the hub's own conversion of it"
    if "zstd" in str(error) or "zstandard" in str(error):
        return "; its files are compressed with zstd, which needs 'pip install zstandard'"
    return ""


def stream_errors() -> tuple[type[Exception], ...]:
    """What reading a dataset may end with; which one depends on its format and on where it is."""
    import datasets

    return (*network_errors(), datasets.exceptions.DatasetsError, ValueError, RuntimeError, ImportError)
