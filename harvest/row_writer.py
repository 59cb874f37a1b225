"""The writing end of a harvest: rows to the store, and beside them how far it is, made durable together."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from time import monotonic
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from tqdm import tqdm

from ..store import CacheWriter
from .config import HarvestConfig
from .packing import Cursor, Role, Sequences
from .sinks import CALIBRATION_TOKENS, SinkEnergy, centered_norms, rows_within
from .stream import TokenBatch

_Count = Annotated[int, Field(ge=0, le=2**48)]
Phase = Literal["copying", "reading", "finishing"]
# A commit waits until everything since the last one is on the disk, so not too much may have gathered.
COMMIT_BYTES = 1 << 30


@dataclass
class Progress:
    """Everything but the rows that is needed to continue exactly.

    ``phase`` is ``copying`` (rows of a cache that is extended), ``reading`` (text through the model) or
    ``finishing`` (shuffled shards). ``conditions`` are those of :func:`.numerics.forward_conditions`,
    ``extends`` says which cache was copied.
    """

    phase: Phase = "reading"
    cursor: Cursor = field(default_factory=Cursor)
    tokens: _Count = 0  # read so far, padding not counted
    last_document: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    documents: _Count = 0
    excluded: dict[str, _Count] = field(default_factory=lambda: {"bos": 0, "separator": 0, "sink": 0})
    padding: _Count = 0
    batch_size: Annotated[int, Field(ge=1, le=2**24)] | None = None
    median_norms: dict[str, float] | None = None
    seconds: float = 0.0
    conditions: dict[str, Any] | None = None
    extends: dict[str, Any] | None = None
    energy: dict[str, SinkEnergy] = field(default_factory=dict)

    def add(self, sequences: Sequences, by_role: NDArray[np.bool_], keep: NDArray[np.bool_]) -> None:
        """Take note of written sequences: ``by_role`` [n, context] is what roles keep, ``keep`` what was
        stored.
        """
        roles = sequences.roles
        self.cursor = sequences.cursors[-1]
        self.tokens += int((roles != Role.PADDING).sum())
        self.padding += int((roles == Role.PADDING).sum())
        self.excluded["bos"] += int(((roles == Role.BOS) & ~by_role).sum())
        self.excluded["separator"] += int(((roles == Role.SEPARATOR) & ~by_role).sum())
        self.excluded["sink"] += int((by_role & ~keep).sum())
        seen = np.unique(sequences.documents)
        new = seen[seen > self.last_document]
        self.documents += len(new)
        self.last_document = int(max(self.last_document, seen[-1]))

    def counts(self, num_tokens: int) -> dict[str, int]:
        """For the manifest."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "tokens_missing": max(0, num_tokens - self.tokens),
            "padding": self.padding,
            **{f"excluded_{reason}": count for reason, count in self.excluded.items()},
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
        if progress.excluded.keys() != cls().excluded.keys():
            raise ValueError(f"excluded: expected counts of {', '.join(cls().excluded)}")
        return progress


class HarvestStep(NamedTuple):
    """A batch and its rows [keep.sum(), D] at every hook.

    ``beside`` is where the rows can be used (:meth:`.forward.ActivationReader.beside`).
    """

    batch: TokenBatch
    rows: dict[str, torch.Tensor]
    beside: AbstractContextManager[None]


class RowWriter:
    """Writes steps in order, counts them, and commits from time to time."""

    def __init__(
        self, writer: CacheWriter, progress: Progress, config: HarvestConfig, bar: "tqdm[Any]"
    ) -> None:
        self._writer = writer
        self._config = config
        self._bar = bar
        self.progress = progress
        self._seconds_before = progress.seconds
        self._started = self._committed = monotonic()
        self._bytes = 0
        self._uncommitted = False
        self._broken = False
        self._reported: set[str] = set()

    def write(self, step: HarvestStep) -> None:
        """One step to the store; commits when it is time."""
        with step.beside:
            self._write(step)

    def _write(self, step: HarvestStep) -> None:
        self._broken = True  # until all of it is in
        sequences, by_role = step.batch
        keep, rows = by_role, step.rows
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
                chosen = torch.from_numpy(np.flatnonzero(fine))
                rows = {hook: x[chosen.to(x.device)] for hook, x in rows.items()}
        self._writer.write_sequences(
            ids=sequences.ids, documents=sequences.documents, keep=keep, activations=rows
        )
        self._uncommitted = True
        before = self.progress.tokens
        self.progress.add(sequences, by_role, keep)
        self._bar.update(self.progress.tokens - before)
        self._bytes += sum(x.numel() for x in rows.values()) * self._config.storage.itemsize
        if self._bytes >= COMMIT_BYTES or monotonic() - self._committed >= self._config.commit_seconds:
            self.commit()
        self._broken = False

    def save(self) -> None:
        """Make durable what the last commit did not, unless writing itself has failed."""
        if not self._broken and self._uncommitted:
            self.commit()
            self._report_sinks(1)

    def _report_sinks(self, enough_rows: int) -> None:
        """Say once of each hook, as soon as so many rows were seen, that a few rows carry much."""
        for hook, energy in self.progress.energy.items():
            if hook not in self._reported and energy.rows >= enough_rows:
                self._reported.add(hook)
                if message := energy.describe(hook):
                    self._bar.write(message, file=sys.stderr)

    def commit(self) -> None:
        """Make everything written so far durable."""
        self.progress.seconds = self._seconds_before + monotonic() - self._started
        self._writer.commit(self.progress.to_json())
        self._committed = monotonic()
        self._bytes = 0
        self._uncommitted = False
