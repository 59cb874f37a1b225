"""The writing end of a harvest: rows to the store, progress beside them, made durable from time to time."""

from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..store import CacheWriter
from .config import HarvestConfig
from .progress import Progress
from .selection import drop_sinks
from .stream import Batch

# A commit waits until everything since the last one is on the disk, so not too much may have gathered.
COMMIT_BYTES = 1 << 30


class Step(NamedTuple):
    """A batch and its rows [keep.sum(), D] at every hook."""

    batch: Batch
    rows: dict[str, torch.Tensor]


class Recorder:
    """Writes steps in order and keeps account of them."""

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

    def write(self, step: Step) -> None:
        """One step to the store; commits when it is time."""
        self._broken = True  # until all of it is in
        sequences, by_role = step.batch
        keep, rows = by_role, step.rows
        ratio = self._config.selection.sink_ratio
        if ratio is not None and self.progress.median_norms is not None and by_role.any():
            fine = drop_sinks(rows, self.progress.median_norms, ratio)
            if not fine.all():
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

    def commit(self) -> None:
        """Make everything written so far durable."""
        self.progress.seconds = self._seconds_before + monotonic() - self._started
        self._writer.commit(self.progress.to_json())
        self._committed = monotonic()
        self._bytes = 0
        self._uncommitted = False
