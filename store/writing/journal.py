"""The journal of an unfinished cache, replaced atomically after every file it refers to was synced."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ...common.counts import StoredCount
from ...common.errors import CorruptCacheError
from ...common.frozen import FrozenModel
from ...common.lookups import exists
from ...common.regular_files import read_regular
from ..durable import write_bytes
from ..layout import TokensKind
from ..manifest import MAX_MANIFEST_BYTES
from ..untrusted_json import check_depth, describe_invalid, parse_json
from .blocks import MAX_BUCKETS
from .pieces import Piece
from .spill import SpillLengths

WORK_FOLDER = ".writing"
JOURNAL = "journal.json"
MAX_PARTS = 1 << 16


class _Counts(FrozenModel):
    def with_more(self, **counts: int) -> Self:
        """A copy in which these counts are so much larger."""
        return self.model_copy(update={name: getattr(self, name) + more for name, more in counts.items()})


class PartLengths(_Counts):
    """How far the spill of one more process goes."""

    blocks: StoredCount = 0
    rows: StoredCount = 0


class Journal(_Counts):
    """Everything that is needed to continue.

    ``blocks`` are those of the first spill. ``train_rows`` and ``heldout_rows`` are in all spills together;
    ``parts`` says how far the second and the further ones go, if several processes have written. ``pieces``
    are in object storage (see ``pieces.py``); then the spills hold only what came after the last commit.
    """

    version: Literal[1] = 1
    identity: dict[str, Any]
    num_buckets: int = Field(ge=1, le=MAX_BUCKETS)
    tokens: TokensKind | None = None  # which token arrays exist; None before the first write
    sequences: StoredCount = 0
    blocks: StoredCount = 0
    train_rows: StoredCount = 0
    heldout_rows: StoredCount = 0
    parts: Annotated[tuple[PartLengths, ...], Field(max_length=MAX_PARTS)] = ()
    pieces: tuple[Piece, ...] = ()
    progress: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_are_not_the_larger(self) -> "Journal":
        rest = self.lengths()
        if rest.rows < 0 or rest.sequences < 0:
            raise ValueError("parts and pieces: more rows or sequences than in all")
        return self

    def lengths(self, part: int = 0) -> SpillLengths:
        """How far the spill number ``part`` goes, of which nothing may be known yet."""
        if part == 0:
            elsewhere: tuple[PartLengths | Piece, ...] = (*self.parts, *self.pieces)
            rows = self.train_rows + self.heldout_rows - sum(other.rows for other in elsewhere)
            sequences = self.sequences - sum(piece.sequences for piece in self.pieces)
            return SpillLengths(self.blocks, rows, sequences)
        known = self.parts[part - 1] if part <= len(self.parts) else PartLengths()
        return SpillLengths(known.blocks, known.rows)

    def spills(self, cache: Path) -> list[Path]:
        """The folders of all spills."""
        return [spill_folder(cache, part) for part in range(1 + len(self.parts))]


def spill_folder(cache: Path, part: int) -> Path:
    """The spill of process number ``part``."""
    return cache / WORK_FOLDER / (f"spill.{part}" if part else "spill")


def journal_path(cache: Path) -> Path:
    """Where the journal of the unfinished cache in ``cache`` is."""
    return cache / WORK_FOLDER / JOURNAL


def read_journal(cache: Path) -> Journal | None:
    """The journal of the unfinished cache in ``cache``, None when there is none yet.

    Raises:
        CorruptCacheError: it is damaged.
    """
    path = journal_path(cache)
    if not exists(path):
        return None
    try:
        return parse_journal(read_regular(path, MAX_MANIFEST_BYTES))
    except (OSError, ValueError) as error:
        raise damaged_journal(cache, describe_invalid(error)) from None


def parse_journal(content: bytes) -> Journal:
    """
    Raises:
        ValueError: it is no journal.
    """
    values = parse_json(content)
    check_depth(values, JOURNAL)
    return Journal.model_validate(values)


def damaged_journal(cache: Path | str, why: str) -> CorruptCacheError:
    """The error for a journal that cannot be continued from."""
    where = cache if isinstance(cache, str) else journal_path(cache)
    return CorruptCacheError(
        f"{where} is damaged or of another version ({why}); remove {cache} to start again"
    )


def write_journal(cache: Path, journal: Journal) -> None:
    """Replace the journal of the cache in ``cache``, as a whole or not at all."""
    write_bytes(journal_path(cache), journal_bytes(journal))


def journal_bytes(journal: Journal) -> bytes:
    """What :func:`parse_journal` reads."""
    left_out = set() if journal.pieces else {"pieces"}  # which version 0.2 did not know
    return journal.model_dump_json(indent=1, exclude=left_out).encode("utf-8")
