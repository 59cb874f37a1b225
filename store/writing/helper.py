"""Several processes that write one cache: each of them spills rows, and writes a share of the shards.

The first process has the :class:`SharedCacheWriter`, with the lock, the journal and the token arrays; each of
the others has a :class:`HelperWriter`. All commits are made by the first, once everybody's rows are durable.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...distributed.group import Group
from ..config import StorageConfig
from ..disk_space import disk_explained
from .arguments import check_activations
from .finalize import Finalizer
from .journal import Journal, read_journal
from .part import SpillMark, SpillPart
from .pieces import PieceStore
from .unit_records import Delivery
from .writer import CacheWriter


class SharedCacheWriter(CacheWriter):
    """The :class:`.CacheWriter` of the first process, or of one that may be alone."""

    def add_rows(
        self,
        first: int,
        documents: NDArray[np.int32],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
    ) -> None:
        """Append the rows of the sequences from number ``first`` on; :meth:`write_token_arrays` has them.

        Each process adds the rows of some sequences, in ascending order. Arguments and errors as in
        :meth:`.CacheWriter.write_sequences`.
        """
        check_activations(activations, self.hooks, int(keep.sum()))
        with self._unfinished.appending("ids and documents") as part:
            self._unfinished.count(**part.add_rows(first, documents, keep, activations))

    def spill_durably(self) -> Journal:
        """The first half of a commit that other processes take part in: what this one wrote is durable.

        Errors as in :meth:`.CacheWriter.commit`.
        """
        with self._unfinished.working():
            return self._unfinished.spill_durably()

    def record(self, durable: Journal, others: Sequence[SpillMark], progress: Mapping[str, Any]) -> None:
        """The second half: what all processes made durable at the same point becomes the last commit.

        Args:
            durable: what :meth:`spill_durably` returned here.
            others: what it returned in the other processes, in the order of their numbers.
            progress: that of all together.
        """
        with self._unfinished.working():
            self._unfinished.record(durable, others, progress)

    def run_share(
        self,
        group: Group,
        stop_asked: Callable[[], bool],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write shards together with other processes, before :meth:`finalize`; all rows are committed.

        Raises:
            KeyboardInterrupt: ``stop_asked()`` in any process; what was finished is kept.
        """
        with self._unfinished.working():
            with group.together():
                finalizer = self._unfinished.finalizer(
                    on_progress=on_progress, delivery=self._delivery, shared=True
                )
            finalizer.run_share(group, stop_asked)


class HelperWriter:
    """Writes rows of the cache in ``path`` as process ``number``, from 1 on, of those that write it.

    Args:
        path: the cache's folder, which all processes see; with ``pieces`` one of its own.
        number: of this process. Whatever the last commit does not know of its spill is cut off.
        journal: the last commit, of the first process.
        storage: as in the first process.
        planned_sequences: how many this process may write.
        delivery: as in the first process.
        pieces: as in the first process.

    Raises:
        UsageError: this process does not see the folder of the first one.
    """

    def __init__(
        self,
        path: Path,
        number: int,
        journal: Journal,
        storage: StorageConfig,
        planned_sequences: int,
        delivery: Delivery | None = None,
        pieces: PieceStore | None = None,
    ) -> None:
        there = read_journal(path) if pieces is None else journal
        if there is None or there.identity != journal.identity:
            raise UsageError(
                f"process {number} does not see what process 0 has written into {path.absolute()}: expected "
                "a folder on a disk that all machines share"
            )
        self.path = path
        self._delivery, self._pieces = delivery, pieces
        self.sequences_done = journal.sequences
        self.hooks: dict[str, int] = journal.identity["hooks"]
        self.context: int = journal.identity["context"]
        self.storage = storage
        self._number, self._journal = number, journal
        self._planned_rows = planned_sequences * self.context
        self._part: SpillPart | None = None
        known = [part.model_dump() for part in journal.parts[number - 1 : number]]
        self._mark = SpillMark(**(known[0] if known else {}))

    @property
    def progress(self) -> dict[str, Any]:
        """The first process's ``progress`` of the commit from which this one continues."""
        return dict(self._journal.progress)

    def go_on_from(self, journal: Journal) -> None:
        """Take over what the first process has committed meanwhile, of the rows of this one too."""
        self._journal, self.sequences_done = journal, journal.sequences

    def add_rows(
        self,
        first: int,
        documents: NDArray[np.int32],
        keep: NDArray[np.bool_],
        activations: Mapping[str, Any],
    ) -> None:
        """As :meth:`SharedCacheWriter.add_rows`."""
        check_activations(activations, self.hooks, int(keep.sum()))
        with disk_explained(self.path):
            self._count(self._open().add_rows(first, documents, keep, activations))

    def write_records(
        self, split: str, token: NDArray[np.uint64], records: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        """As :meth:`.CacheWriter.write_records`."""
        with disk_explained(self.path):
            self._open().add_records(split, token, records)
        self._count({f"{split}_rows": len(token)})

    def spill_durably(self) -> SpillMark:
        """Make what was added durable, and return how far it goes, for the first process to record.

        Raises:
            DiskFullError: the last commit still stands.
        """
        with disk_explained(self.path):
            piece = self._open().make_durable()
        if self._pieces is None:
            self._mark = self._mark.model_copy(update={"blocks": self._open().blocks})
        elif piece is not None:
            self._mark = self._mark.model_copy(update={"pieces": (*self._mark.pieces, piece)})
        return self._mark

    def run_share(self, journal: Journal, group: Group, stop_asked: Callable[[], bool]) -> None:
        """Write shards together with the other processes, of the rows that ``journal`` counts.

        Raises:
            KeyboardInterrupt: ``stop_asked()`` in any process; what was finished is kept.
        """
        with group.together():
            finalizer = Finalizer(
                self.path,
                journal,
                self.storage,
                delivery=self._delivery,
                pieces=self._pieces,
                drop_pages=False,
            )
        finalizer.run_share(group, stop_asked)

    def close(self) -> None:
        """Stop. Rows since the last commit are lost."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def _count(self, added: dict[str, int]) -> None:
        self._mark = self._mark.with_more(rows=sum(added.values()), **added)

    def _open(self) -> SpillPart:
        if self._part is None:
            self._part = SpillPart(
                self.path,
                self._number,
                self._journal,
                self.storage,
                planned_rows=self._planned_rows,
                store=self._pieces,
            )
        return self._part


def commit_together(
    writer: CacheWriter | HelperWriter, group: Group, progress: Mapping[str, Any] | None = None
) -> None:
    """A commit of all processes of ``group``, which call this at the same point.

    ``progress`` is that of all together, of the first process; None keeps the last.
    """
    if group.size == 1 and isinstance(writer, CacheWriter):
        writer.commit(progress)
        return
    assert isinstance(writer, SharedCacheWriter | HelperWriter)
    durable: Journal | SpillMark | None = None
    with group.together():
        durable = writer.spill_durably()
    marks = group.gather_values(durable.model_dump() if isinstance(durable, SpillMark) else None)
    with group.together():
        if isinstance(writer, SharedCacheWriter) and isinstance(durable, Journal):
            others = [SpillMark.model_validate(mark) for mark in marks[1:]]
            writer.record(durable, others, writer.progress if progress is None else progress)
