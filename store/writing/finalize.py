"""From the spill to the finished arrays, shard by shard.

A finalize that was killed does the units of work that have no record, and ends with the same bytes. Several
processes share the units in the same way: each does some, and the first one then finds all records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ...common.errors import CorruptCacheError
from ...distributed.group import Group
from ..config import StorageConfig
from ..disk_space import disk_explained
from ..encoding.records import RecordLayout
from ..manifest import HookInfo, Manifest
from ..reading.sharded_array import ShardedArray
from ..shard_file import CHUNKS_IN_FLIGHT, ShardWriter
from ..statistics import exact_quantiles
from ..untrusted_json import describe_invalid
from .blocks import Block
from .journal import Journal, damaged_journal
from .lanes import Lanes, choose_lanes
from .pieces import PieceStore
from .planned_size import plan_layout
from .shard_units import NamedUnit, ShardUnits
from .spills import FolderSpills, PieceSpills, Spills
from .unit_records import Delivery, UnitRecords

_QUANTILE_BLOCK_ROWS = 1 << 20
_MEETING_BYTES = 256 << 20  # that a process writes before it meets the others again


class Finalizer:
    """Writes every array of a cache from its spill, and from the blocks that are still in memory.

    Args:
        cache: the folder of the cache.
        journal: counts the rows, of which some are for training.
        storage: how they are stored.
        on_progress: called with (bytes done, bytes in all).
        delivery: takes the shards that are finished.
        pieces: has the rows, where processes share no folder.
        in_memory: blocks of rows that were not spilled.
        drop_pages: whether the system may drop pages of the spill once they were read.
    """

    def __init__(
        self,
        cache: Path,
        journal: Journal,
        storage: StorageConfig,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        delivery: Delivery | None = None,
        pieces: PieceStore | None = None,
        in_memory: Sequence[Block] = (),
        drop_pages: bool = True,
    ) -> None:
        identity = journal.identity
        assert journal.tokens is not None
        self._cache, self._journal, self._storage, self._delivery = cache, journal, storage, delivery
        self._layout = plan_layout(
            identity["hooks"],
            identity["context"],
            storage,
            train_rows=journal.train_rows,
            heldout_rows=journal.heldout_rows,
            sequences=journal.sequences,
            tokens=journal.tokens,
        )
        self._records = UnitRecords(cache, self._layout, on_progress, delivery, pieces)
        widths = identity["hooks"].values()
        widest = max(RecordLayout(width, storage.dtype).record_bytes for width in widths)
        rows = [self._layout.activations("train", hook) for hook in self._layout.hooks]
        limit_bytes = storage.memory_bytes // 4
        bucket_bytes = widest * journal.train_rows // journal.num_buckets
        chunk_bytes = max(spec.chunk_bytes for spec in rows)
        most_lanes = max(spec.num_shards for spec in rows) if pieces is None else 1
        number = choose_lanes(
            most_lanes,
            limit_bytes,
            bucket_bytes * 9 // 8 + CHUNKS_IN_FLIGHT * chunk_bytes,  # buckets are not all of one size
        )

        def lane() -> ShardUnits:
            shards = ShardWriter()
            limits: dict[str, Any] = {"limit_bytes": limit_bytes // number, "in_use": shards.under_way}
            spills: Spills
            if pieces is not None:
                spills = PieceSpills(cache, journal, self._layout, pieces, **limits)
            else:
                spills = FolderSpills(
                    journal.spills(cache),
                    journal,
                    in_memory=in_memory,
                    drop_pages=drop_pages and number == 1,  # other lanes may still want them
                    record_bytes=widest,
                    **limits,
                )
            unit = storage.normalization == "unit"
            return ShardUnits(cache, self._layout, spills, shards, unit=unit)

        self._units, *others = (lane() for _ in range(number))
        self._lanes = Lanes([self._units, *others], self._records)

    def run(self, counts: Mapping[str, int]) -> Manifest:
        """Write all shards; the manifest of them, with further ``counts``.

        Raises:
            CorruptCacheError: the journal's numbers are not those of what was written.
        """
        try:
            self._records.prepare()
            for _ in self._lanes.run(lambda units: chain(units.of_tokens(), units.of_sequences())):
                pass
            hooks = {hook: self._hook(hook, number) for number, hook in enumerate(self._layout.hooks)}
        finally:
            self._close()
        try:
            return Manifest.from_layout(
                self._layout,
                self._journal.identity,
                hooks,
                self._storage.normalization,
                counts=counts,
                files=sorted(self._records.files, key=lambda file: file.path),
            )
        except ValidationError as error:
            raise damaged_journal(self._cache, describe_invalid(error)) from None

    def run_share(self, group: Group, stop_asked: Callable[[], bool]) -> None:
        """Write the shards of rows, token indices and token arrays that fall to this process of ``group``.

        They meet again and again, so that they fail and stop together. Afterwards :meth:`run`, of a new
        finalizer in one of them, finds everything recorded but the statistics.

        Raises:
            KeyboardInterrupt: ``stop_asked()`` in any process; what was recorded is kept.
        """
        records, layout = self._records, self._layout
        shares = [self._share(rank, group.size) for rank in range(group.size)]
        mine = shares[group.rank]
        self._units.keep_within(mine)
        specs = [layout.activations("train", hook) for hook in layout.hooks]
        step = max(1, _MEETING_BYTES // max(spec.shard_rows * spec.row_bytes for spec in specs))
        on_progress, records.on_progress = records.on_progress, None  # which is told of all processes at once
        try:
            if self._delivery is not None:
                self._delivery.meet(group)
            with group.together(), disk_explained(self._cache):
                records.prepare()
            for first in range(0, max(map(len, shares)), step):
                with group.together(), disk_explained(self._cache):
                    for name, write in mine[first : first + step]:
                        records.once(name, write)
                answers = group.gather_values([stop_asked(), records.done_bytes])
                if on_progress:
                    on_progress(sum(done for _, done in answers), records.total_bytes)
                if any(asked for asked, _ in answers):
                    raise KeyboardInterrupt
            with group.together(), disk_explained(self._cache):
                records.settle()
            if self._delivery is not None:
                self._delivery.meet(group)
        finally:
            self._close()

    def _close(self) -> None:
        self._lanes.close()
        self._records.close()

    def _share(self, rank: int, size: int) -> list[NamedUnit]:
        """The units of one of ``size`` processes: neighbouring ones, which read the same buckets."""
        units = self._units
        hooks = chain.from_iterable(units.of_hook(hook, i) for i, hook in enumerate(self._layout.hooks))
        share: list[NamedUnit] = []
        for each in map(list, (units.of_tokens(), units.of_sequences(), hooks)):
            share += each[len(each) * rank // size : len(each) * (rank + 1) // size]
        return share

    def _hook(self, hook: str, number: int) -> HookInfo:
        """Write all rows of a hook, both splits, and its statistics."""
        width, train_rows = self._layout.hooks[hook], self._layout.train_rows
        sums = np.zeros((2, width))
        for name, partial_sums in self._lanes.run(lambda units: units.of_hook(hook, number)):
            if name.startswith("train"):
                if np.shape(partial_sums) != sums.shape:
                    raise CorruptCacheError(
                        f"{self._records.folder}: a record of {hook} is damaged; remove it"
                    )
                sums += np.array(partial_sums)
        moments = sums / max(train_rows, 1)
        for name, write in self._units.of_statistics(hook, number, moments):
            self._records.once(name, write)
        self._records.settle()
        self._records.bring_back(self._layout.norm("train", hook))
        try:
            quantiles = exact_quantiles(partial(self._norms, hook), train_rows)
            return HookInfo(d_model=width, mean_square_norm=fsum(moments[1]), norm_quantiles=quantiles)
        except ValidationError:  # rows from a model were checked when they came, rows of a cache were not
            raise CorruptCacheError(
                f"hook {hook}: among the rows, or their norms, are some that are no finite numbers"
            ) from None

    def _norms(self, hook: str) -> Iterator[NDArray[np.float32]]:
        norms = ShardedArray(self._cache, self._layout.norm("train", hook))
        for start in range(0, len(norms), _QUANTILE_BLOCK_ROWS):
            yield norms[start : start + _QUANTILE_BLOCK_ROWS]
