"""Which arrays a cache has, and the Zarr v3 metadata of each: everything here follows from a few numbers.

Every array is cut along its first axis only: shards of ``shard_rows``, in them chunks of ``chunk_rows``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np

from ..common.errors import UsageError
from .encoding.codecs import BloscCodec, ZstdCodec, max_encoded_bytes

StoredDtype = Literal["float16", "float32", "bfloat16", "int8"]
TokensKind = Literal["ids and documents", "documents", "none"]
SPLITS = ("train", "heldout")
SPLIT_FOLDER = {"train": "rows", "heldout": "heldout"}
PROVENANCE_GROUP = "provenance"
TOP_FOLDERS = ("rows", "heldout", "tokens", "stats", PROVENANCE_GROUP)
TOKENS_PER_CHUNK = 1 << 14
PADDING_ID = -1  # in ids and documents: a sequence has no token there
MAX_WIDTH = MAX_CONTEXT = 1 << 24
MAX_CHUNK_BYTES = 1 << 30
MAX_CHUNKS_PER_SHARD = 1 << 20
# The number type in the metadata. Zarr has no bfloat16: such rows are stored as their 16 bits.
ZARR_DTYPE: dict[str, str] = {
    "float16": "float16",
    "float32": "float32",
    "bfloat16": "uint16",
    "int8": "int8",
}

_HOOK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}")
_RESERVED_NAMES = {"token", "zarr.json"}
_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC: dict[str, Any] = {"name": "crc32c"}


@dataclass(frozen=True)
class ArraySpec:
    """One sharded array: its place in the cache, shape, number type, cut and compression."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    shard_rows: int
    dimension_names: tuple[str, ...]
    codec: ZstdCodec | BloscCodec | None = None
    bits_of: str | None = None  # the number type whose bits the stored integers are

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: one index along the first axis."""
        return prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk, its crc32c not counted."""
        return self.chunk_rows * self.row_bytes

    @property
    def chunks_per_shard(self) -> int:
        return self.shard_rows // self.chunk_rows

    @property
    def num_shards(self) -> int:
        return -(-self.shape[0] // self.shard_rows)

    def rows_of_shard(self, shard: int) -> int:
        """Rows that shard number ``shard`` really holds (the last one may be short)."""
        return min(self.shard_rows, self.shape[0] - shard * self.shard_rows)

    def chunks_of_shard(self, shard: int) -> int:
        """Inner chunks that are present in shard number ``shard``."""
        return -(-self.rows_of_shard(shard) // self.chunk_rows)

    @property
    def max_stored_bytes(self) -> int:
        """The most bytes that a stored chunk can have, its crc32c included; without compression, its size."""
        return (self.chunk_bytes if self.codec is None else max_encoded_bytes(self.chunk_bytes)) + 4

    def shard_size(self, shard: int) -> int:
        """Bytes of the shard file: chunks with their crc32c, then the index with its crc32c.

        With compression, the most that it can have.
        """
        return self.chunks_of_shard(shard) * self.max_stored_bytes + index_size(self.chunks_per_shard)

    def may_have_size(self, shard: int, size: int) -> bool:
        """Whether the file of a shard can have ``size`` bytes."""
        if self.codec is None:
            return size == self.shard_size(shard)
        least = self.chunks_of_shard(shard) * 5 + index_size(self.chunks_per_shard)
        return least <= size <= self.shard_size(shard)

    def shard_path(self, shard: int) -> str:
        """Path of the shard file inside the cache."""
        return f"{self.path}/c/{shard}" + "/0" * (len(self.shape) - 1)

    def metadata(self) -> dict[str, Any]:
        """The array's zarr.json."""
        inner, outer = [self.chunk_rows, *self.shape[1:]], [self.shard_rows, *self.shape[1:]]
        compression = [] if self.codec is None else [self.codec.metadata(np.dtype(self.dtype).itemsize)]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if self.dtype.startswith("float") else 0,
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": inner,
                        "codecs": [_BYTES, *compression, _CRC],
                        "index_codecs": [_BYTES, _CRC],
                        "index_location": "end",
                    },
                }
            ],
            "attributes": {} if self.bits_of is None else {"bits_of": self.bits_of},
            "dimension_names": list(self.dimension_names),
        }


@dataclass(frozen=True)
class Layout:
    """The numbers from which every array of a cache follows."""

    hooks: Mapping[str, int]  # name -> d_model
    context: int
    train_rows: int
    heldout_rows: int
    sequences: int
    tokens: TokensKind
    dtype: StoredDtype
    chunk_rows: int
    shard_rows: int
    chunk_sequences: int
    shard_sequences: int
    codec: ZstdCodec | BloscCodec | None = None  # of the activations; the other arrays are small

    def rows(self, split: str) -> int:
        return self.train_rows if split == "train" else self.heldout_rows

    def token(self, split: str) -> ArraySpec:
        """rows/token: uint64 [N]."""
        return self._rows(split, "token", (), "uint64")

    def activations(self, split: str, hook: str) -> ArraySpec:
        """rows/<hook>/activations: [N, D]."""
        spec = self._rows(split, f"{hook}/activations", (self.hooks[hook],), ZARR_DTYPE[self.dtype])
        bits_of = self.dtype if ZARR_DTYPE[self.dtype] != self.dtype else None
        return replace(spec, codec=self.codec, bits_of=bits_of)

    def scale(self, split: str, hook: str) -> ArraySpec:
        """rows/<hook>/scale: float32 [N], of int8 rows only."""
        return self._rows(split, f"{hook}/scale", (), "float32")

    def norm(self, split: str, hook: str) -> ArraySpec:
        """rows/<hook>/norm: float32 [N]."""
        return self._rows(split, f"{hook}/norm", (), "float32")

    def mean(self, split: str, hook: str) -> ArraySpec:
        """rows/<hook>/mean: float32 [N]."""
        return self._rows(split, f"{hook}/mean", (), "float32")

    def beside(self, split: str, hook: str) -> list[ArraySpec]:
        """The arrays that go with the activations: norm, mean, and the scale if there is one."""
        scale = [self.scale(split, hook)] if self.dtype == "int8" else []
        return [self.norm(split, hook), self.mean(split, hook), *scale]

    def ids(self) -> ArraySpec:
        """tokens/ids: int32 [S, context]."""
        return self._tokens("tokens/ids")

    def documents(self) -> ArraySpec:
        """tokens/document: int32 [S, context]."""
        return self._tokens("tokens/document")

    def statistic(self, hook: str, name: str) -> ArraySpec:
        """stats/<hook>/<name>: float64 [D]."""
        d_model = self.hooks[hook]
        return ArraySpec(f"stats/{hook}/{name}", (d_model,), "float64", d_model, d_model, ("dimension",))

    def sequence_arrays(self) -> dict[str, ArraySpec]:
        """The token arrays that this cache has, by their name below ``tokens/``."""
        if self.tokens == "none":
            return {}
        return {"document": self.documents()} | ({"ids": self.ids()} if self.tokens != "documents" else {})

    def total_bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(
            (spec.num_shards - 1) * spec.shard_size(0)
            + spec.shard_size(spec.num_shards - 1)  # all but the last are full
            for spec in self.arrays()
            if spec.num_shards
        )

    def arrays(self) -> list[ArraySpec]:
        """Every array of the cache."""
        specs: list[ArraySpec] = []
        for split in SPLITS:
            specs.append(self.token(split))
            for hook in self.hooks:
                specs += [self.activations(split, hook), *self.beside(split, hook)]
        specs += self.sequence_arrays().values()
        for hook in self.hooks:
            specs += [self.statistic(hook, "mean"), self.statistic(hook, "second_moment")]
        return specs

    def groups(self) -> list[str]:
        """Paths of the nested groups (the root not counted)."""
        hook_groups = [f"{root}/{hook}" for root in ("rows", "heldout", "stats") for hook in self.hooks]
        tokens = [] if self.tokens == "none" else ["tokens"]
        return ["rows", "heldout", "stats", *tokens, *hook_groups]

    def _rows(self, split: str, name: str, tail: tuple[int, ...], dtype: str) -> ArraySpec:
        names = ("row", "dimension")[: 1 + len(tail)]
        path = f"{SPLIT_FOLDER[split]}/{name}"
        return ArraySpec(path, (self.rows(split), *tail), dtype, self.chunk_rows, self.shard_rows, names)

    def _tokens(self, path: str) -> ArraySpec:
        shape, names = (self.sequences, self.context), ("sequence", "position")
        return ArraySpec(path, shape, "int32", self.chunk_sequences, self.shard_sequences, names)


def choose_shard_rows(widest_row_bytes: int, chunk_rows: int, shard_bytes: int) -> int:
    """Rows of one shard: whole chunks of the widest array, at most ``shard_bytes`` but at least one chunk."""
    return chunk_rows * max(1, shard_bytes // (chunk_rows * widest_row_bytes))


def choose_sequence_cut(context: int, shard_bytes: int) -> tuple[int, int]:
    """(sequences per chunk, sequences per shard) of the token arrays."""
    chunk_sequences = max(1, TOKENS_PER_CHUNK // context)
    return chunk_sequences, choose_shard_rows(4 * context, chunk_sequences, shard_bytes)


def index_size(chunks_per_shard: int) -> int:
    """Bytes of a shard's index: (offset, size) of each chunk as uint64, then crc32c."""
    return 16 * chunks_per_shard + 4


def group_metadata(attributes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A group's zarr.json."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}


def metadata_bytes(metadata: Mapping[str, Any]) -> bytes:
    """The content of a zarr.json file, indented so that people can read it."""
    return (json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def check_hook_names(names: Sequence[str]) -> None:
    """Hook names are folder names in the cache.

    Raises:
        UsageError: a name that is not letters, digits, ``_ . -``, that the format uses itself, or that
            differs from another only in upper and lower case (some file systems do not tell them apart).
    """
    for name in names:
        if not _HOOK_NAME.fullmatch(name) or ".." in name or name.lower() in _RESERVED_NAMES:
            raise UsageError(
                f"hook name {name!r} cannot be a folder of the cache: expected 1 to 200 letters, digits, "
                f"'_', '.', '-', starting with a letter or digit, without '..', "
                f"and none of {sorted(_RESERVED_NAMES)}"
            )
    if len({name.lower() for name in names}) < len(names):
        raise UsageError(f"hook names must differ in more than upper and lower case, got {sorted(names)}")
