"""Reading a finished cache: rows by batch, by number, and where each came from."""

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.devices import choose_device
from ...common.errors import UsageError
from ...distributed.group import ALONE, Group
from ..layout import SPLITS
from ..manifest_file import check_files, load_manifest
from ..normalization import KINDS
from ..remote.places.urls import is_url
from .arguments import check_floating, check_one_of, check_row_numbers, check_whole_numbers
from .batches import BatchPlan
from .contents import CacheContents
from .device_batches import iter_batches_on
from .downloads import download_ahead
from .order import EpochOrder
from .row_reader import BufferPool, RowReader
from .same_tokens import check_name, check_same_tokens
from .sinks import SinkFilter


def open_cache(
    path: Path | str,
    rows: int | None = None,
    beside: "Mapping[str, Path | str | ActivationCache] | None" = None,
    group: Group = ALONE,
) -> "ActivationCache":
    """Open a finished cache: a folder, or a URL such as ``s3://bucket/team/name``.

    With ``rows`` only the first training rows are used, a uniform sample (:meth:`ActivationCache.head`).
    ``beside`` names further caches of the same tokens (:meth:`ActivationCache.with_beside`).
    Processes of a ``group`` that all open it together read the manifest from a URL once.

    Opening a folder reads the manifest and the sizes of all files. Opening a URL reads the manifest only:
    shards are downloaded as they are read, and some ahead of that, into a folder that all processes of this
    machine share (SAECACHE_CACHE_DIR, at most SAECACHE_CACHE_BYTES), and compared with the manifest.

    Raises:
        UsageError: no such folder or location, not a cache, a newer format, no access, or fewer rows.
        IncompleteCacheError: the cache is still being written.
        CorruptCacheError: the manifest contradicts itself, or a file is missing or of the wrong size.
        RemoteError: the object store does not answer.
    """
    if is_url(path):
        from ..remote.opening import open_remote

        url, manifest, files = open_remote(str(path), group=group)
        cache = ActivationCache(url, manifest, files)
    else:
        path = Path(path)
        manifest = load_manifest(path)
        check_files(path, manifest)
        cache = ActivationCache(path, manifest)
    cache = cache.with_beside(beside or {}, group)
    return cache if rows is None else cache.head(rows)


class ActivationCache(CacheContents):
    """A finished cache, see :func:`open_cache`. Safe to use from several threads.

    Row r is the same token under every hook. ``split`` is ``train`` (rows in shuffled order) or ``heldout``
    (rows of held-out documents, in reading order). ``normalization`` is one of ``normalization.KINDS``; None
    gives rows as they are stored.

    ``beside`` has other caches of the same tokens by name (:meth:`with_beside`). Their hooks are called
    ``NAME:HOOK``; the manifest, the token ids and everything that is not of a hook are this cache's own.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the cache for itself."""
        return open_cache, (self.path, self._rows, self.beside)

    def head(self, rows: int) -> "ActivationCache":
        """The same cache with its first ``rows`` training rows only, which are a uniform sample of all.

        Held-out rows, token ids and documents stay whole. So do :meth:`statistics`: the normalizations
        ``scale`` and ``unit_scale`` multiply the rows by the same number as in a run on all of them.

        Raises:
            UsageError: there are fewer rows.
        """
        (rows,) = check_whole_numbers(rows=rows)
        if not 0 < rows <= len(self):
            raise UsageError(
                f"expected to use from 1 to the {len(self)} training rows of {self.path}, got {rows}"
            )
        beside = {name: other.head(rows) for name, other in self.beside.items()}
        return ActivationCache(self.path, self.manifest, self._files, rows, beside)

    def with_beside(
        self, caches: "Mapping[str, Path | str | ActivationCache]", group: Group = ALONE
    ) -> "ActivationCache":
        """The same cache with the hooks of others, ``NAME:HOOK``: row r is the same token under all of them.

        The others hold the activations of other models on the same text, harvested with the same settings.
        Processes of a ``group`` that all call this together read manifests from URLs once.

        Raises:
            UsageError: a cache does not hold the same tokens in the same order, or a name is taken or is not
                made of letters, digits, ``_`` and ``-``. As :func:`open_cache` for one that cannot be opened.
        """
        beside: dict[str, ActivationCache] = dict(self.beside)
        for name, place in caches.items():
            check_name(name)
            if name in beside:
                if place is not beside[name] and str(place) != str(beside[name].path):
                    raise UsageError(f"two caches are called {name}: {beside[name].path} and {place}")
                continue
            other = place if isinstance(place, ActivationCache) else open_cache(place, group=group)
            if other.beside:
                raise UsageError(f"the cache {name} has caches beside it: name them beside {self.path} too")
            check_same_tokens(self, other, name)
            beside[name] = other if self._rows is None else other.head(self._rows)
        if beside == self.beside:
            return self
        return ActivationCache(self.path, self.manifest, self._files, self._rows, beside)

    def batches(
        self,
        hook: str,
        rows_per_batch: int = 4096,
        seed: int = 0,
        epoch: int = 0,
        split: str = "train",
        normalization: str | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        start_batch: int = 0,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        num_rows: int | None = None,
        sink_ratio: float | None = None,
        sink_hooks: Sequence[str] | None = None,
        batches_ahead: int = 2,
        own_rows: slice | None = None,
        pieces: int = 1,
    ) -> Generator[torch.Tensor, None, None]:
        """One epoch of batches [B, D], checked ahead in a thread. Their order depends on seed and epoch only.

        Epoch 0 is the stored order, a uniform shuffle of the whole cache; later epochs permute chunks, and
        rows within windows of chunks. Held-out rows always come in reading order.

        Args:
            hook: name of the hook.
            rows_per_batch: B; the last batch is shorter unless ``drop_last``.
            seed: of the order of later epochs.
            epoch: from 0.
            split: ``train`` or ``heldout``.
            normalization: what is handed out, None = as stored.
            dtype: a floating point type.
            start_batch: begin with this batch of the epoch; those before it are not read.
            drop_last: leave out a last batch that is shorter.
            device: where the batches go, as :func:`.choose_device` names it.
            num_rows: only the first ``num_rows`` rows of the split, for ``train`` a uniform sample.
            sink_ratio: leave out rows whose norm at this hook is above this multiple of the median training
                norm (attention sinks). Batches stay full, so there are fewer of them (:meth:`num_batches`).
            sink_hooks: with ``sink_ratio``, leave out the rows that are sinks at any of these hooks. Batches
                of several hooks hold the same tokens if all are read with the same ``sink_hooks``.
            batches_ahead: how many batches are brought to a GPU before they are asked for, at least 2. They
                lie there as they are stored, in up to a GiB. On a CPU it has no effect.
            own_rows: of every batch read and hand out these rows only, for processes that share a batch.
            pieces: hand out every batch in so many pieces of equal size, one after the other.

        Raises:
            UsageError: no such hook, split, normalization or device; an argument of a wrong kind; a batch
                larger than the rows there are.
            CorruptCacheError: while iterating, naming the shard.
            RemoteError: while iterating; the cache is in object storage, which does not answer.
        """
        reader = self._row_reader(hook, split, normalization)
        rows = self._limit_rows(split, num_rows)
        check_floating(dtype)
        rows_per_batch, seed, epoch, start_batch, batches_ahead = check_whole_numbers(
            rows_per_batch=rows_per_batch,
            seed=seed,
            epoch=epoch,
            start_batch=start_batch,
            batches_ahead=batches_ahead,
        )
        target = choose_device(str(device))
        if epoch < 0 or start_batch < 0:
            raise UsageError(f"epoch and start_batch count from 0, got {epoch} and {start_batch}")
        sink_hooks = sink_hooks or [hook]
        available = self._count_kept(sink_hooks, split, sink_ratio, rows)
        if not 0 < rows_per_batch <= available:
            raise UsageError(
                f"rows_per_batch must be from 1 to the {available} rows of split {split!r} of {self.path}"
                f"{'' if available == rows else ' that are not sinks'}, got {rows_per_batch}"
            )
        own = range(rows_per_batch)[own_rows or slice(None)]
        if own.step != 1 or not len(own) or pieces < 1 or len(own) % pieces:
            raise UsageError(
                f"own_rows={own_rows} of {rows_per_batch} rows and pieces={pieces}: expected consecutive "
                "rows of a batch, whose number is a multiple of pieces"
            )
        sinks = None if sink_ratio is None else self._sinks(sink_hooks, split, sink_ratio)
        plan = BatchPlan(
            order=EpochOrder(
                num_rows=rows,
                chunk_rows=self._layout.chunk_rows,
                seed=seed,
                epoch=epoch if split == "train" else 0,
                shard_chunks=self._layout.shard_rows // self._layout.chunk_rows,
            ),
            num_rows=available,
            rows_per_batch=rows_per_batch,
            start_batch=start_batch,
            drop_last=drop_last,
            keep=None if sinks is None else sinks.keep,
            own=None if len(own) == rows_per_batch else own,
            pieces=pieces,
        )
        around = download_ahead([*reader.arrays, *(sinks.norms if sinks else ())], plan.shards)
        return iter_batches_on(target, reader, plan, dtype, batches_ahead, around)

    def num_batches(
        self,
        rows_per_batch: int = 4096,
        split: str = "train",
        *,
        drop_last: bool = False,
        num_rows: int | None = None,
        hook: str | None = None,
        sink_ratio: float | None = None,
        sink_hooks: Sequence[str] | None = None,
    ) -> int:
        """How many batches an epoch has.

        Raises:
            UsageError: a number of rows that no epoch can have, or ``sink_ratio`` without ``hook`` or
                ``sink_hooks``, whose norms are read then.
        """
        hooks = sink_hooks or ([] if hook is None else [hook])
        if sink_ratio is not None and not hooks:
            raise UsageError("num_batches with sink_ratio needs the hook: norms differ between hooks")
        (rows_per_batch,) = check_whole_numbers(rows_per_batch=rows_per_batch)
        if rows_per_batch < 1:
            raise UsageError(f"rows_per_batch: expected at least 1, got {rows_per_batch}")
        rows = self._count_kept(hooks, split, sink_ratio, self._limit_rows(split, num_rows))
        return rows // rows_per_batch if drop_last else -(-rows // rows_per_batch)

    def rows(
        self,
        hook: str,
        indices: Any,
        split: str = "train",
        normalization: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Rows by number, in the order asked for: ``indices`` [n], a slice, or bool [rows] -> [n, D]
        on the CPU, in ``dtype``.

        Raises:
            UsageError: no such hook, split or normalization, or ``dtype`` is no floating point type.
            IndexError, TypeError: there are no rows of these numbers.
            CorruptCacheError: naming the shard.
            RemoteError: the cache is in object storage, which does not answer.
        """
        reader = self._row_reader(hook, split, normalization)
        check_floating(dtype)
        numbers = check_row_numbers(reader.activations, indices)
        out = torch.empty(len(numbers), self.d_model(hook), dtype=dtype, device="cpu")
        chunks = numbers // self._layout.chunk_rows
        with download_ahead(reader.arrays, lambda size: np.unique(chunks // size).tolist()):
            reader.fill(out, numbers, BufferPool(), release=True)
        return out

    def _row_reader(self, hook: str, split: str, normalization: str | None) -> RowReader:
        holder, own = self._holder(hook)
        check_one_of("split", split, SPLITS)
        layout, arrays = holder._layout, holder._arrays
        return RowReader(
            activations=arrays[layout.activations(split, own).path],
            norm=arrays[layout.norm(split, own).path],
            mean=arrays[layout.mean(split, own).path],
            stored=KINDS[holder.normalization].starts_from,
            normalizer=self.normalizer(hook, normalization),
            row_scale=arrays.get(layout.scale(split, own).path),
        )

    @cached_property
    def _kept_rows(self) -> dict[tuple[tuple[str, ...], str, float, int], int]:
        """Counted by :meth:`_count_kept`."""
        return {}

    def _sinks(self, hooks: Sequence[str], split: str, ratio: float) -> SinkFilter:
        held = [self._holder(hook) for hook in hooks]
        return SinkFilter(
            [holder.stored(holder._layout.norm(split, own)) for holder, own in held],
            [holder.manifest.hooks[own].norm_quantiles["0.5"] for holder, own in held],
            ratio,
        )

    def _count_kept(self, hooks: Sequence[str], split: str, ratio: float | None, rows: int) -> int:
        """How many of the first ``rows`` rows are attention sinks at none of ``hooks``; counted once."""
        if ratio is None:
            return rows
        key = (tuple(hooks), split, ratio, rows)
        if key not in self._kept_rows:
            self._kept_rows[key] = self._sinks(hooks, split, ratio).count_kept(rows)
        return self._kept_rows[key]
