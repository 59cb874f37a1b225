"""The journal of an unfinished cache, replaced atomically after every file it refers to was synced."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ...common.errors import CorruptCacheError
from ...common.frozen import FrozenModel
from ..durable import write_bytes
from ..layout import TokensKind
from .spill import SpillLengths

WORK_FOLDER = ".writing"
JOURNAL = "journal.json"


class Journal(FrozenModel):
    """Everything that is needed to continue."""

    version: Literal[1] = 1
    identity: dict[str, Any]
    num_buckets: int = Field(ge=1)
    tokens: TokensKind | None = None  # which token arrays exist; None before the first write
    sequences: int = Field(default=0, ge=0)
    blocks: int = Field(default=0, ge=0)
    train_rows: int = Field(default=0, ge=0)
    heldout_rows: int = Field(default=0, ge=0)
    progress: dict[str, Any] = Field(default_factory=dict)

    @property
    def lengths(self) -> SpillLengths:
        return SpillLengths(self.blocks, self.train_rows + self.heldout_rows, self.sequences)


def journal_path(cache: Path) -> Path:
    return cache / WORK_FOLDER / JOURNAL


def read_journal(cache: Path) -> Journal | None:
    """The journal of the unfinished cache in ``cache``, None when there is none yet."""
    path = journal_path(cache)
    if not path.is_file():
        return None
    try:
        return Journal.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptCacheError(
            f"{path} is damaged or of another version ({error.errors()[0]['msg']}); "
            f"remove {cache} to start again"
        ) from None


def write_journal(cache: Path, journal: Journal) -> None:
    write_bytes(journal_path(cache), journal.model_dump_json(indent=1).encode("utf-8"))
