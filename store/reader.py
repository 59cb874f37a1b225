"""Reading a cache."""

from collections.abc import Iterator
from difflib import get_close_matches
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import UsageError
from .layout import SPLITS
from .manifest import Manifest, load_manifest
from .normalization import NORMALIZATIONS, Normalizer
from .order import EpochOrder
from .sharded_array import ShardedArray
from .statistics import HookStatistics


def open_cache(path: Path | str) -> "ActivationCache":
    """Open a finished cache.

    Raises:
        UsageError: no such folder, not a cache, or a newer format.
        IncompleteCacheError: the cache is still being written.
        CorruptCacheError: the manifest contradicts itself.
    """
    return ActivationCache(Path(path), load_manifest(Path(path)))


class ActivationCache:
    """A finished cache: rows by batch, by number, and where each came from."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.hooks = list(manifest.hooks)
        self.context = manifest.context
        self.normalization: str = manifest.storage.normalization
        self._layout = manifest.layout
        self._arrays: dict[str, ShardedArray] = {
            spec.path: ShardedArray(path, spec) for spec in self._layout.arrays()
        }

    def __len__(self) -> int:
        """Training rows."""
        return self.manifest.train_rows

    def num_rows(self, split: str = "train") -> int:
        self._check_split(split)
        return self._layout.rows(split)

    def d_model(self, hook: str) -> int:
        self._check_hook(hook)
        return self.manifest.hooks[hook].d_model

    def num_batches(
        self,
        rows_per_batch: int = 4096,
        split: str = "train",
        *,
        drop_last: bool = False,
        num_rows: int | None = None,
    ) -> int:
        rows = self.num_rows(split) if num_rows is None else num_rows
        return rows // rows_per_batch if drop_last else -(-rows // rows_per_batch)

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
    ) -> Iterator[torch.Tensor]:
        """One epoch of batches [B, D]; the last one is shorter unless ``drop_last``."""
        self._check_hook(hook)
        self._check_split(split)
        rows = self.num_rows(split)
        if num_rows is not None:
            if not 0 < num_rows <= rows:
                raise UsageError(
                    f"num_rows must be from 1 to the {rows} rows of split {split}, got {num_rows}"
                )
            rows = num_rows
        if not 0 < rows_per_batch <= rows:
            raise UsageError(
                f"rows_per_batch must be from 1 to the {rows} rows of split {split}, got {rows_per_batch}"
            )
        kind = self._check_normalization(normalization)
        order = EpochOrder(rows, self._layout.chunk_rows, seed, 0 if split == "heldout" else epoch)
        return self._iterate(
            order, hook, split, kind, dtype, rows_per_batch, start_batch, drop_last, device, sink_ratio
        )

    def _iterate(
        self,
        order: EpochOrder,
        hook: str,
        split: str,
        kind: str,
        dtype: torch.dtype,
        rows_per_batch: int,
        start_batch: int,
        drop_last: bool,
        device: str | torch.device,
        sink_ratio: float | None,
    ) -> Iterator[torch.Tensor]:
        limit = None
        if sink_ratio is not None:
            limit = sink_ratio * self.manifest.hooks[hook].norm_quantiles["0.5"]
        rest = np.empty(0, dtype=np.int64)
        skip = start_batch * rows_per_batch
        for window in range(order.num_windows):
            rows = order.window(window)
            if limit is not None:
                rows = rows[self._array(self._layout.norm(split, hook).path).gather(rows) <= limit]
            taken = min(skip, len(rows))
            skip -= taken
            rest = np.concatenate([rest, rows[taken:]])
            while len(rest) >= rows_per_batch:
                yield self.rows(hook, rest[:rows_per_batch], split, kind, dtype).to(device)
                rest = rest[rows_per_batch:]
        if len(rest) and not drop_last:
            yield self.rows(hook, rest, split, kind, dtype).to(device)

    def rows(
        self,
        hook: str,
        indices: Any,
        split: str = "train",
        normalization: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Rows by number: [n, D]."""
        self._check_hook(hook)
        self._check_split(split)
        kind = self._check_normalization(normalization)
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        stored = torch.from_numpy(self._array(self._layout.activations(split, hook).path).gather(indices))
        if kind == self.normalization:
            return stored.to(dtype)
        return self._renormalize(stored.float(), hook, split, indices, kind).to(dtype)

    def _renormalize(
        self, y: torch.Tensor, hook: str, split: str, indices: NDArray[np.int64], kind: str
    ) -> torch.Tensor:
        norm = torch.from_numpy(self._array(self._layout.norm(split, hook).path).gather(indices))[:, None]
        mean = torch.from_numpy(self._array(self._layout.mean(split, hook).path).gather(indices))[:, None]
        if kind in ("unit", "layer_norm"):
            if self.normalization == "none":
                y = torch.where(norm > 0, (y - mean) / norm, torch.zeros_like(y))
            return y * sqrt(self.d_model(hook)) if kind == "layer_norm" else y
        if self.normalization == "unit":
            y = y * norm + mean
        return y * self.normalizer(hook, "scale").scale if kind == "scale" else y

    @property
    def tokens(self) -> ShardedArray:
        """Token ids int32 [S, context], -1 = padding."""
        if self.manifest.tokens != "ids and documents":
            raise UsageError(f"{self.path} has no token ids: its rows do not come from text")
        return self._array("tokens/ids")

    @property
    def documents(self) -> ShardedArray:
        """Document of each position, int32 [S, context], -1 = padding."""
        if self.manifest.tokens == "none":
            raise UsageError(f"{self.path} stores no documents: every row is its own")
        return self._array("tokens/document")

    def token_index(self, split: str = "train") -> ShardedArray:
        """uint64 [N]: sequence * context + position of each row."""
        self._check_split(split)
        return self._array(self._layout.token(split).path)

    def locate(
        self, rows: Any, split: str = "train"
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where rows come from: (sequence, position, document), int64 [n] each."""
        token = self.token_index(split).gather(np.asarray(rows, dtype=np.int64).reshape(-1)).astype(np.int64)
        sequence, position = np.divmod(token, self.context)
        if self.manifest.tokens == "none":
            return sequence, position, token
        document = self.documents.gather(sequence)[np.arange(len(token)), position].astype(np.int64)
        return sequence, position, document

    def statistics(self, hook: str) -> HookStatistics:
        self._check_hook(hook)
        info = self.manifest.hooks[hook]
        return HookStatistics(
            mean=self._array(f"stats/{hook}/mean")[:],
            second_moment=self._array(f"stats/{hook}/second_moment")[:],
            mean_square_norm=info.mean_square_norm,
            norm_quantiles=dict(info.norm_quantiles),
            rows=self.manifest.train_rows,
        )

    def normalizer(self, hook: str, kind: str | None = None) -> Normalizer:
        """The normalization ``kind`` (as stored when None) for rows of ``hook``."""
        kind = self._check_normalization(kind)
        d_model = self.d_model(hook)
        mean_square = self.manifest.hooks[hook].mean_square_norm
        scale = sqrt(d_model / mean_square) if kind == "scale" and mean_square > 0 else 1.0
        return Normalizer(kind=kind, d_model=d_model, scale=scale)  # type: ignore[arg-type]

    def _array(self, path: str) -> ShardedArray:
        return self._arrays[path]

    def _check_hook(self, hook: str) -> None:
        if hook not in self.manifest.hooks:
            close = get_close_matches(hook, self.hooks, n=3)
            hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
            raise UsageError(f"no hook {hook!r} in {self.path}{hint}; it has {', '.join(self.hooks)}")

    def _check_split(self, split: str) -> None:
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: expected one of {', '.join(SPLITS)}")

    def _check_normalization(self, kind: str | None) -> str:
        kind = self.normalization if kind is None else kind
        if kind not in NORMALIZATIONS:
            raise UsageError(f"normalization {kind!r}: expected one of {', '.join(NORMALIZATIONS)}")
        return kind
