"""The journal of an unfinished cache, replaced atomically after every file it refers to was synced."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...common.errors import CorruptCacheError
from ...common.frozen import FrozenModel
from ...common.untrusted_files import read_regular
from ..durable import write_bytes
from ..layout import TokensKind
from ..manifest import MAX_MANIFEST_BYTES
from ..untrusted import check_depth, describe_invalid, parse_json
from .spill import MAX_BUCKETS, SpillLengths

WORK_FOLDER = ".writing"
JOURNAL = "journal.json"


class Journal(FrozenModel):
    """Everything that is needed to continue."""

    version: Literal[1] = 1
    identity: dict[str, Any]
    num_buckets: int = Field(ge=1, le=MAX_BUCKETS)
    tokens: TokensKind | None = None  # which token arrays exist; None before the first write
    sequences: int = Field(default=0, ge=0, le=2**48)
    blocks: int = Field(default=0, ge=0, le=2**48)
    train_rows: int = Field(default=0, ge=0, le=2**48)
    heldout_rows: int = Field(default=0, ge=0, le=2**48)
    progress: dict[str, Any] = Field(default_factory=dict)

    @property
    def lengths(self) -> SpillLengths:
        return SpillLengths(self.blocks, self.train_rows + self.heldout_rows, self.sequences)


def journal_path(cache: Path) -> Path:
    return cache / WORK_FOLDER / JOURNAL


def read_journal(cache: Path) -> Journal | None:
    """The journal of the unfinished cache in ``cache``, None when there is none yet.

    Raises:
        CorruptCacheError: it is damaged.
    """
    path = journal_path(cache)
    if not path.is_file():
        return None
    try:
        values = parse_json(read_regular(path, MAX_MANIFEST_BYTES))
        check_depth(values, JOURNAL)
        return Journal.model_validate(values)
    except (OSError, ValueError) as error:
        raise damaged_journal(cache, describe_invalid(error)) from None


def damaged_journal(cache: Path, why: str) -> CorruptCacheError:
    """The error for a journal that cannot be continued from."""
    return CorruptCacheError(
        f"{journal_path(cache)} is damaged or of another version ({why}); remove {cache} to start again"
    )


def write_journal(cache: Path, journal: Journal) -> None:
    write_bytes(journal_path(cache), journal.model_dump_json(indent=1).encode("utf-8"))
