"""The manifest describes a cache and lists its files. It is written last, as an attribute of the root group.

A manifest may come from anybody, so everything in it is checked before it is used: types, ranges, names,
paths, and that its own checksum, its fingerprint and its table of files agree with the rest.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..common.counts import StoredCount
from ..common.frozen import FrozenModel
from .encoding.codecs import Codec
from .identity import fingerprint, sha256_of_json
from .layout import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS_PER_SHARD,
    MAX_CONTEXT,
    MAX_WIDTH,
    Layout,
    StoredDtype,
    TokensKind,
    check_hook_names,
)
from .untrusted_json import check_depth

FORMAT_VERSION = 2
NEEDS_SAECACHE = {2: "0.1.0"}  # format version -> the first saecache that reads it; version 1 does not say
MANIFEST_ATTRIBUTE = "saecache"
MAX_MANIFEST_BYTES = 256 << 20
# Positions that a cache without token arrays may have been sliced from.
_SLICED_POSITIONS, _SLICED_POSITIONS_PER_ROW = 1 << 32, 1 << 16
# Fields that a manifest and its layout have in common; hooks and cut differ in form.
_LAYOUT_FIELDS = ("context", "train_rows", "heldout_rows", "sequences", "tokens", "dtype", "codec")

_Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Finite = Annotated[float, Field(allow_inf_nan=False, ge=0)]


class FileInfo(FrozenModel):
    """One file of the cache."""

    path: str
    size: StoredCount
    sha256: _Hex64


class HookInfo(FrozenModel):
    """One hook: its width, and the scalars of its statistics over all training rows."""

    d_model: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    mean_square_norm: _Finite = Field(description="mean over rows of the squared L2 norm of the raw row")
    norm_quantiles: dict[str, _Finite] = Field(
        description="quantile of the stored norms (L2 norm of the centered row), keyed by its level"
    )


class Cut(FrozenModel):
    """How arrays are cut into inner chunks and shards, in indices along the first axis."""

    chunk_rows: Annotated[int, Field(ge=1, le=2**24)]
    shard_rows: Annotated[int, Field(ge=1, le=2**40)]
    chunk_sequences: Annotated[int, Field(ge=1, le=2**24)]
    shard_sequences: Annotated[int, Field(ge=1, le=2**40)]

    @model_validator(mode="after")
    def _whole_chunks(self) -> "Cut":
        if self.shard_rows % self.chunk_rows or self.shard_sequences % self.chunk_sequences:
            raise ValueError("a shard must hold a whole number of chunks")
        return self


class Manifest(FrozenModel):
    """See ``README.md`` in this folder for each field."""

    format_version: Literal[1, 2]
    needs_saecache: str | None = None
    fingerprint: _Hex64
    identity: dict[str, Any]
    hooks: dict[str, HookInfo] = Field(min_length=1, max_length=4096)
    context: Annotated[int, Field(ge=1, le=MAX_CONTEXT)]
    sequences: StoredCount
    train_rows: StoredCount
    heldout_rows: StoredCount
    counts: dict[str, StoredCount]
    tokens: TokensKind
    dtype: StoredDtype
    codec: Codec | None = None
    normalization: Literal["unit", "none"]
    cut: Cut
    files: list[FileInfo]

    @field_validator("files", mode="before")
    @classmethod
    def _one_for_each_shard(cls, files: Any, info: ValidationInfo) -> Any:
        """Compare their number with the layout before parsing them; the fields above are checked by now."""
        if isinstance(files, list) and cls.model_fields.keys() - info.data.keys() == {"files"}:
            _check_positions(info.data)
            expected = sum(spec.num_shards for spec in _layout_of(info.data).arrays())
            if len(files) != expected:
                raise ValueError(f"expected {expected} shards, got {len(files)}")
        return files

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        check_hook_names(list(self.hooks))
        check_depth(self.identity, "identity")
        if self.format_version < (needed := choose_format(self.dtype, self.codec)):
            raise ValueError(f"format_version: {self.dtype} and codec {self.codec} are of version {needed}")
        if self.fingerprint != fingerprint(self.identity):
            raise ValueError("the fingerprint is not that of the identity")
        arrays = self.layout.arrays()
        for spec in arrays:
            if spec.chunk_bytes > MAX_CHUNK_BYTES or spec.chunks_per_shard > MAX_CHUNKS_PER_SHARD:
                raise ValueError(f"{spec.path}: chunks or shards larger than the format allows")
        listed = {file.path: file.size for file in self.files}
        if len(listed) < len(self.files):
            raise ValueError("files: one path stands twice")
        for spec in arrays:
            for shard in range(spec.num_shards):
                got = listed.get(spec.shard_path(shard))
                if got is None or not spec.may_have_size(shard, got):
                    raise ValueError(
                        f"files: expected {spec.shard_path(shard)} with {spec.shard_size(shard)} bytes, "
                        f"got {got}"
                    )
        return self

    @classmethod
    def from_layout(
        cls,
        layout: Layout,
        identity: Mapping[str, Any],
        hooks: dict[str, HookInfo],
        normalization: Literal["unit", "none"],
        *,
        counts: Mapping[str, int],
        files: list[FileInfo],
    ) -> "Manifest":
        """The manifest of a cache whose arrays have this layout."""
        format_version = choose_format(layout.dtype, layout.codec)
        return cls(
            format_version=format_version,
            needs_saecache=NEEDS_SAECACHE.get(format_version),
            fingerprint=fingerprint(identity),
            identity=dict(identity),
            hooks=hooks,
            counts=dict(counts),
            normalization=normalization,
            cut=Cut(**{name: getattr(layout, name) for name in Cut.model_fields}),
            files=files,
            **{name: getattr(layout, name) for name in _LAYOUT_FIELDS},
        )

    @property
    def layout(self) -> Layout:
        """The arrays that follow from the manifest's numbers."""
        return _layout_of(dict(self))

    def to_attribute(self) -> dict[str, Any]:
        """The manifest as JSON values, with ``checksum``: sha256 of the canonical JSON of the rest."""
        later = {"needs_saecache", "codec"}  # fields that version 1 does not have
        values = self.model_dump(mode="json", exclude=later if self.format_version == 1 else None)
        return {**values, "checksum": sha256_of_json(values)}


def _layout_of(fields: Mapping[str, Any]) -> Layout:
    """The arrays that follow from the checked fields of a manifest."""
    return Layout(
        hooks={name: info.d_model for name, info in fields["hooks"].items()},
        **{name: fields[name] for name in _LAYOUT_FIELDS},
        **dict(fields["cut"]),
    )


def _check_positions(fields: Mapping[str, Any]) -> None:
    """Compare the number of rows with the positions of all sequences, which checks walk through.

    Token arrays are as large as there are positions. Without them every row is a sequence of its own, unless
    the cache is a slice of some of the rows.
    """
    rows = fields["train_rows"] + fields["heldout_rows"]
    sequences, context = fields["sequences"], fields["context"]
    if rows > sequences * context:
        raise ValueError(f"{rows} rows are more than the positions of {sequences} sequences of {context}")
    most = max(_SLICED_POSITIONS, _SLICED_POSITIONS_PER_ROW * rows) if "slice" in fields["identity"] else rows
    if fields["tokens"] == "none" and (context != 1 or sequences > most):
        raise ValueError(
            f"{sequences} sequences of {context} positions without tokens for {rows} rows; expected one for "
            "each row"
        )


def choose_format(dtype: str, codec: Codec | None) -> Literal[1, 2]:
    """The oldest format version that can hold such rows: a cache is written in that one."""
    return 1 if dtype in ("float16", "float32") and codec is None else 2
