"""Several processes that write one cache: each of them spills rows, and writes a share of the shards.

The first process has the :class:`.CacheWriter`, with the lock, the journal and the token arrays; each of the
others has a :class:`HelperWriter`. All commits are made by the first, once everybody's rows are durable.
"""

from collections.abc import Callable, Mapping
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
from .unit_records import Delivery
from .writer import CacheWriter


class HelperWriter:
    """Writes rows of the cache in ``path`` as process ``number``, from 1 on, of those that write it.

    Args:
        path: the cache's folder, which all processes see.
        number: of this process. Whatever the last commit does not know of its spill is cut off.
        journal: the last commit, of the first process.
        storage: as in the first process.
        planned_sequences: how many this process may write.
        delivery: as in the first process.

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
    ) -> None:
        there = read_journal(path)
        if there is None or there.identity != journal.identity:
            raise UsageError(
                f"process {number} does not see what process 0 has written into {path.absolute()}: expected "
                "a folder on a disk that all machines share"
            )
        self.path = path
        self._delivery = delivery
        self.sequences_done = journal.sequences
        self.hooks: dict[str, int] = journal.identity["hooks"]
        self.context: int = journal.identity["context"]
        self.storage = storage
        self._number, self._journal = number, journal
        self._planned_rows = planned_sequences * self.context
        self._part: SpillPart | None = None
        self._mark = SpillMark(**journal.parts[number - 1].model_dump()) if self._is_known else SpillMark()

    @property
    def _is_known(self) -> bool:
        return self._number <= len(self._journal.parts)

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
        """As :meth:`.CacheWriter.add_rows`."""
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
            self._open().make_durable()
        self._mark = self._mark.model_copy(update={"blocks": self._open().blocks})
        return self._mark

    def run_share(self, journal: Journal, group: Group, stop_asked: Callable[[], bool]) -> None:
        """Write shards together with the other processes, of the rows that ``journal`` counts.

        Raises:
            KeyboardInterrupt: ``stop_asked()`` in any process; what was finished is kept.
        """
        with group.together():
            finalizer = Finalizer(self.path, journal, self.storage, delivery=self._delivery, drop_pages=False)
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
                self.path, self._number, self._journal, self.storage, planned_rows=self._planned_rows
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
    durable: Journal | SpillMark | None = None
    with group.together():
        durable = writer.spill_durably()
    marks = group.gather_values(durable.model_dump() if isinstance(durable, SpillMark) else None)
    with group.together():
        if isinstance(writer, CacheWriter) and isinstance(durable, Journal):
            others = [SpillMark.model_validate(mark) for mark in marks[1:]]
            writer.record(durable, others, writer.progress if progress is None else progress)
