"""What a finished cache holds besides batches: its arrays by name, where rows come from, statistics."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ...common.errors import CorruptCacheError, UsageError
from ..identity import fingerprint
from ..layout import SPLIT_FOLDER, SPLITS, ArraySpec
from ..manifest import Manifest
from ..normalization import KINDS, Normalizer
from ..provenance import read_provenance
from ..statistics import HookStatistics
from .arguments import check_one_of, check_row_numbers, check_whole_numbers
from .sharded_array import ShardedArray

if TYPE_CHECKING:
    from ..remote.shards import RemoteShards

_TRAIN_ARRAYS = SPLIT_FOLDER["train"] + "/"
_FREE_DECODED_BYTES, _MOST_GROWTH = 64 << 20, 128  # of a compressed array that is decoded as a whole
_HOOKS_SHOWN = 6


class CacheContents:
    """The part of :class:`.ActivationCache` that reads arrays as they are stored."""

    def __init__(
        self,
        path: Path | str,
        manifest: Manifest,
        files: "RemoteShards | None" = None,
        rows: int | None = None,
        beside: "Mapping[str, Self] | None" = None,
    ) -> None:
        self.path = path  # the folder, or the URL
        self._files = files
        self._rows = rows  # training rows that are used; None: all
        self.manifest = manifest
        self.beside = dict(beside or {})
        self.fingerprint = manifest.fingerprint
        if self.beside:
            others = {name: other.fingerprint for name, other in self.beside.items()}
            self.fingerprint = fingerprint({"cache": manifest.fingerprint, "beside": others})
        self.hooks = list(manifest.hooks)
        self.hooks += [f"{name}:{hook}" for name, other in self.beside.items() for hook in other.hooks]
        self.context = manifest.context
        self.normalization: str = manifest.normalization
        self._layout = manifest.layout
        growing = _find_growing_arrays(manifest)
        self._arrays = {
            spec.path: ShardedArray(
                path,
                spec,
                files=files,
                rows=rows if spec.path.startswith(_TRAIN_ARRAYS) else None,
                keep_decoded=spec.path not in growing,
            )
            for spec in self._layout.arrays()
        }

    def __repr__(self) -> str:
        hooks = [f"{hook} ({self.d_model(hook)})" for hook in self.hooks[:_HOOKS_SHOWN]]
        more = ["..."] if len(self.hooks) > _HOOKS_SHOWN else []
        return (
            f"ActivationCache({str(self.path)!r}: {len(self):,} training and {self.num_rows('heldout'):,} "
            f"held-out rows at {', '.join(hooks + more)})"
        )

    def __len__(self) -> int:
        """Training rows."""
        return self.num_rows("train")

    def num_rows(self, split: str = "train") -> int:
        """Rows of ``split``, ``train`` or ``heldout``; each hook has as many."""
        check_one_of("split", split, SPLITS)
        return self._layout.rows(split) if self._rows is None or split != "train" else self._rows

    def stored(self, spec: ArraySpec) -> ShardedArray:
        """An array of ``manifest.layout`` as it is stored."""
        return self._arrays[spec.path]

    def d_model(self, hook: str) -> int:
        """Width D of the rows of ``hook``.

        Raises:
            UsageError: no such hook.
        """
        holder, own = self._holder(hook)
        return holder.manifest.hooks[own].d_model

    @property
    def provenance(self) -> dict[str, Any]:
        """Facts that are not part of the identity: when, by which software and how fast it was made."""
        if self._files is None:
            return read_provenance(self.path)
        from ..remote.opening import read_remote_provenance

        return read_remote_provenance(str(self.path))

    @property
    def tokens(self) -> ShardedArray:
        """Token ids int32 [S, context], -1 = padding."""
        if self.manifest.tokens != "ids and documents":
            raise UsageError(f"{self.path} has no token ids: its rows do not come from text")
        return self._arrays["tokens/ids"]

    @property
    def documents(self) -> ShardedArray:
        """Document of each position, int32 [S, context], -1 = padding."""
        if self.manifest.tokens == "none":
            raise UsageError(f"{self.path} stores no documents: every row is its own")
        return self._arrays["tokens/document"]

    def token_index(self, split: str = "train") -> ShardedArray:
        """uint64 [N]: sequence * context + position of each row."""
        check_one_of("split", split, SPLITS)
        return self._arrays[self._layout.token(split).path]

    def locate(
        self, rows: Any, split: str = "train"
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where rows come from: (sequence, position, document), int64 [n] each.

        Rows are given as for :meth:`rows`. If the cache stores no documents, each row is its own.

        Raises:
            IndexError, TypeError: there are no rows of these numbers.
            CorruptCacheError: a row says that it comes from a sequence that the cache does not have.
        """
        tokens = self.token_index(split)
        numbers = check_row_numbers(tokens, rows)
        stored = tokens.gather(numbers)
        beyond = np.flatnonzero(stored >= self._layout.sequences * self.context)
        if len(beyond):
            raise CorruptCacheError(
                f"{self.path}/{tokens.spec.path}: row {numbers[beyond[0]]} is of token {stored[beyond[0]]}, "
                f"expected less than {self._layout.sequences} sequences x {self.context} positions; see "
                "'saecache cache verify'"
            )
        token = stored.astype(np.int64)
        sequence, position = np.divmod(token, self.context)
        if self.manifest.tokens == "none":
            return sequence, position, token
        distinct, places = np.unique(sequence, return_inverse=True)
        document = self.documents.gather(distinct)[places, position]
        return sequence, position, document.astype(np.int64)

    def statistics(self, hook: str) -> HookStatistics:
        """Statistics over the raw training rows, all of them also after :meth:`head`.

        ``mean`` and ``second_moment`` are float64 [D].

        Raises:
            UsageError: no such hook.
        """
        holder, own = self._holder(hook)
        info, layout = holder.manifest.hooks[own], holder.manifest.layout
        return HookStatistics(
            mean=holder.stored(layout.statistic(own, "mean"))[:],
            second_moment=holder.stored(layout.statistic(own, "second_moment"))[:],
            mean_square_norm=info.mean_square_norm,
            norm_quantiles=dict(info.norm_quantiles),
            rows=self.manifest.train_rows,
        )

    def normalizer(self, hook: str, kind: str | None = None) -> Normalizer:
        """The normalization ``kind`` (as stored when None) for rows of ``hook``."""
        holder, own = self._holder(hook)
        kind = holder.normalization if kind is None else kind
        check_one_of("normalization", kind, list(KINDS))
        info = holder.manifest.hooks[own]
        return Normalizer.of_mean_square(kind, info.d_model, info.mean_square_norm)

    def _limit_rows(self, split: str, num_rows: int | None) -> int:
        rows = self.num_rows(split)
        if num_rows is None:
            return rows
        (num_rows,) = check_whole_numbers(num_rows=num_rows)
        if not 0 < num_rows <= rows:
            raise UsageError(f"num_rows must be from 1 to the {rows} rows of split {split!r}, got {num_rows}")
        return num_rows

    def _holder(self, hook: str) -> "tuple[Self, str]":
        """The cache that holds a hook, and the hook's name there."""
        check_one_of("hook", hook, self.hooks)
        name, colon, own = hook.partition(":")
        return (self.beside[name], own) if colon else (self, hook)


def _find_growing_arrays(manifest: Manifest) -> set[str]:
    """Paths of compressed arrays whose rows take so many times their file that memory must not hold many.

    Rows of a model shrink by a few times; equal ones shrink without end.
    """
    if manifest.codec is None:
        return set()
    sizes = {file.path: file.size for file in manifest.files}
    growing = set()
    for spec in manifest.layout.arrays():
        if spec.codec is not None:
            stored = sum(sizes[spec.shard_path(shard)] for shard in range(spec.num_shards))
            if spec.shape[0] * spec.row_bytes > max(_FREE_DECODED_BYTES, _MOST_GROWTH * stored):
                growing.add(spec.path)
    return growing
