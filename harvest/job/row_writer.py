"""The writing end of a harvest: rows to the store, and beside them how far it is, made durable together."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from time import monotonic
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from tqdm import tqdm

from ...common.counts import StoredCount
from ...distributed.group import ALONE, Group
from ...store.writing.helper import HelperWriter, SharedCacheWriter
from ...store.writing.journal import Journal
from ...store.writing.part import SpillMark
from ..config import HarvestConfig
from ..text.config import MESSAGE_ROLES
from ..text.packing import EXCLUDED, Cursor, Role, Sequences
from .feed import Share
from .first_block import CALIBRATION_TOKENS
from .sinks import SinkEnergy, centered_norms, rows_within
from .stream import TokenBatch

Phase = Literal["copying", "reading", "finishing"]
# A commit waits until everything since the last one is on the disk, so not too much may have gathered.
COMMIT_BYTES = 1 << 30


@dataclass
class Progress:
    """Everything but the rows that is needed to continue exactly.

    ``phase`` is ``copying`` (rows of a cache that is extended), ``reading`` (text through the model) or
    ``finishing`` (shuffled shards). ``conditions`` are those of :func:`.conditions.forward_conditions`,
    ``extends`` says which cache was copied. ``chat`` counts the tokens of the template and of each role, and
    those of them that give no row.
    """

    phase: Phase = "reading"
    cursor: Cursor = field(default_factory=Cursor)
    tokens: StoredCount = 0  # read so far, padding not counted
    last_document: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    documents: StoredCount = 0
    excluded: dict[str, StoredCount] = field(default_factory=lambda: {"bos": 0, "separator": 0, "sink": 0})
    padding: StoredCount = 0
    batch_size: Annotated[int, Field(ge=1, le=2**24)] | None = None
    median_norms: dict[str, float] | None = None
    seconds: float = 0.0
    conditions: dict[str, Any] | None = None
    extends: dict[str, Any] | None = None
    energy: dict[str, SinkEnergy] = field(default_factory=dict)
    chat: dict[str, StoredCount] = field(default_factory=dict)

    def add(self, sequences: Sequences, by_role: NDArray[np.bool_]) -> None:
        """Take note of written sequences: ``by_role`` [n, context] is what roles keep."""
        roles = sequences.roles
        self.cursor = sequences.cursors[-1]
        self.tokens += int((roles != Role.PADDING).sum())
        self.padding += int((roles == Role.PADDING).sum())
        self.excluded["bos"] += int(((roles == Role.BOS) & ~by_role).sum())
        self.excluded["separator"] += int(((roles == Role.SEPARATOR) & ~by_role).sum())
        for name, count in _count_chat_tokens(roles).items():
            self.chat[name] = self.chat.get(name, 0) + count
        seen = np.unique(sequences.documents)
        new = seen[seen > self.last_document]
        self.documents += len(new)
        self.last_document = int(max(self.last_document, seen[-1]))

    def add_rows_of(self, others: Iterable[Mapping[str, Any]]) -> None:
        """Add what other processes say of the rows that they wrote; see :meth:`of_rows`."""
        for other in others:
            self.excluded["sink"] += other["sinks"]
            for hook, energy in other["energy"].items():
                self.energy.setdefault(hook, SinkEnergy()).merge(SinkEnergy(**energy))

    def of_rows(self) -> dict[str, Any]:
        """What is known from the rows alone, not from their sequences. Plain JSON."""
        energy = {hook: asdict(energy) for hook, energy in self.energy.items()}
        return {"sinks": self.excluded["sink"], "energy": energy}

    def counts(self, num_tokens: int) -> dict[str, int]:
        """For the manifest."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "tokens_missing": max(0, num_tokens - self.tokens),
            "padding": self.padding,
            **{f"excluded_{reason}": count for reason, count in self.excluded.items()},
            **{name: self.chat[name] for name in _chat_counts() if name in self.chat},
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cursor": list(self.cursor)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; nothing there is the beginning.

        Journals of version 0.1 name no phase; while they copied, they held the place in the copy alone.

        Raises:
            ValueError: they are something else.
        """
        if not values:
            return cls()
        if "cursor" not in values:
            return cls(phase="copying")
        if unknown := values.keys() - {each.name for each in fields(cls)}:
            raise ValueError(f"{min(unknown)[:80]!r} is nothing that a harvest notes")
        progress = TypeAdapter(cls).validate_python(values)
        if min(progress.cursor) < 0:
            raise ValueError(f"cursor: expected numbers from 0, got {list(progress.cursor)}")
        if unknown := progress.chat.keys() - set(_chat_counts()):
            raise ValueError(f"chat: {min(unknown)[:80]!r} is nothing that is counted")
        if progress.excluded.keys() != cls().excluded.keys():
            raise ValueError(f"excluded: expected counts of {', '.join(cls().excluded)}")
        return progress


def _chat_counts() -> list[str]:
    """Names of all counts of chats, in the order of the manifest."""
    return [f"{what}_{name}" for name in ("template", *MESSAGE_ROLES) for what in ("tokens", "excluded")]


def _count_chat_tokens(roles: NDArray[np.uint8]) -> dict[str, int]:
    """``tokens_user``, ``excluded_user``, ... of roles [n, context]; nothing without chats."""
    counts = np.bincount(roles.ravel(), minlength=256)
    excluded = counts[Role.TEMPLATE + EXCLUDED :][: 1 + len(MESSAGE_ROLES)]
    seen = counts[Role.TEMPLATE :][: 1 + len(MESSAGE_ROLES)] + excluded
    values = np.stack([seen, excluded], axis=1).ravel().tolist()
    there = np.repeat(seen > 0, 2)
    return {name: value for name, value, any_ in zip(_chat_counts(), values, there, strict=True) if any_}


class HarvestStep(NamedTuple):
    """A step and its rows [keep.sum(), D] at every hook.

    ``beside`` is where the rows can be used (:meth:`.forward.ActivationReader.beside`).
    """

    share: Share
    rows: dict[str, torch.Tensor]
    beside: AbstractContextManager[None]


class RowWriter:
    """Writes steps in order, counts them, and commits when it is told to.

    Every process of a group has one. A commit has two halves: each process makes its rows durable, and then
    the first one, which counts the sequences and has the journal, records it.
    """

    def __init__(
        self,
        writer: SharedCacheWriter | HelperWriter,
        progress: Progress,
        config: HarvestConfig,
        bar: "tqdm[Any]",
        group: Group = ALONE,
    ) -> None:
        self._writer = writer
        self._config = config
        self._bar = bar
        self._group = group
        self.progress = progress
        self._seconds_before = progress.seconds
        self._started = self._committed = monotonic()
        self._bytes = 0
        self._committing = self._uncommitted = self._broken = False
        self._durable: tuple[Journal, Progress] | None = None  # of the first process, and not yet recorded
        self._mark: dict[str, Any] | None = None
        self._reported: set[str] = set()

    def commit_due(self) -> bool:
        """Whether it is time for a commit, and none is under way; if so, it is expected to be asked for."""
        if not self._committing:
            seconds = monotonic() - self._committed
            self._committing = self._bytes >= COMMIT_BYTES or seconds >= self._config.commit_seconds
            return self._committing
        return False

    def take_mark(self) -> dict[str, Any] | None:
        """What was made durable for a commit that has to be recorded; None if there is nothing new."""
        mark, self._mark = self._mark, None
        return mark

    def write(self, step: HarvestStep) -> None:
        """One step to the store, and everything that goes with it."""
        self._broken = True  # until all of it is in
        share = step.share
        if share.marks is not None:
            self._record(share.marks)
        if share.batch is not None:
            with step.beside:
                self._write_rows(share.first, share.batch, step.rows)
        self._uncommitted = True
        if share.counted is not None:
            self._count(share.counted)
        if share.commit:
            self.commit()
        self._broken = False

    def _write_rows(self, first: int, batch: TokenBatch, rows: dict[str, torch.Tensor]) -> None:
        sequences, by_role = batch
        keep = by_role
        ratio, medians = self._config.selection.sink_ratio, self.progress.median_norms
        if medians and by_role.any():
            norms = {hook: centered_norms(x) for hook, x in rows.items()}
            if ratio is None:
                for hook, median in medians.items():
                    self.progress.energy.setdefault(hook, SinkEnergy()).add(norms[hook], median)
                self._report_sinks(CALIBRATION_TOKENS)
            elif not (fine := rows_within(norms, medians, ratio)).all():
                keep = by_role.copy()
                keep[by_role] = fine
                self.progress.excluded["sink"] += int((~fine).sum())
                chosen = torch.from_numpy(np.flatnonzero(fine))
                rows = {hook: x[chosen.to(x.device)] for hook, x in rows.items()}
        self._writer.add_rows(first, sequences.documents, keep, rows)
        self._bytes += sum(x.numel() for x in rows.values()) * self._config.storage.itemsize

    def _count(self, batch: TokenBatch) -> None:
        """Take note of the sequences of a round, whoever made their rows."""
        assert isinstance(self._writer, SharedCacheWriter)
        sequences, before = batch.sequences, self.progress.tokens
        arrays = {"ids": sequences.ids, "document": sequences.documents}
        self._writer.write_token_arrays("ids and documents", len(sequences), arrays)
        self.progress.add(sequences, batch.keep)
        self._bar.update(self.progress.tokens - before)

    def save(self) -> None:
        """Make durable what the last commit did not, unless writing itself has failed.

        All processes call this together, after the same round.
        """
        if self._group.size == 1 and (self._broken or not self._uncommitted):
            return
        with self._group.together():
            self._spill_durably()
        marks = self._group.gather_values(self.take_mark())
        with self._group.together():
            if self._group.is_first:
                self._record(marks)
                self.progress.add_rows_of(marks[1:])
        self._report_sinks(1)

    def _report_sinks(self, enough_rows: int) -> None:
        """Say once of each hook, as soon as so many rows were seen, that a few rows carry much."""
        for hook, energy in self.progress.energy.items() if self._group.is_first else ():
            if hook not in self._reported and energy.rows >= enough_rows:
                self._reported.add(hook)
                if message := energy.describe(hook):
                    self._bar.write(message, file=sys.stderr)

    def commit(self) -> None:
        """Make everything written so far durable; a process alone records it at once."""
        self._spill_durably()
        if self._group.size == 1:
            self._record([self.take_mark()])

    def _spill_durably(self) -> None:
        self.progress.seconds = self._seconds_before + monotonic() - self._started
        if isinstance(self._writer, SharedCacheWriter):
            self._durable = self._writer.spill_durably(), deepcopy(self.progress)
            self._mark = {"durable": True}
        else:
            self._mark = self._writer.spill_durably().model_dump() | self.progress.of_rows()

    def _record(self, marks: Sequence[Any]) -> None:
        """Record the commit of which these are the marks of all processes."""
        assert isinstance(self._writer, SharedCacheWriter) and self._durable is not None
        journal, progress = self._durable
        progress.add_rows_of(marks[1:])
        others = [
            SpillMark.model_validate({name: mark[name] for name in SpillMark.model_fields})
            for mark in marks[1:]
        ]
        self._writer.record(journal, others, progress.to_json())
        self._committed = monotonic()
        self._bytes = 0
        self._committing = self._uncommitted = False
