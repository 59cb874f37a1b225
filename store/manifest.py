"""The manifest describes a cache and lists its files. It is written last, as an attribute of the root group.

A manifest may come from anybody, so everything in it is checked before it is used: types, ranges, names,
paths, and that its own checksum, its fingerprint and its table of files agree with the rest.
"""

import hashlib
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..common.errors import CorruptCacheError, IncompleteCacheError, UsageError
from ..common.frozen import FrozenModel
from ..common.untrusted_files import read_regular
from ..common.versions import package_version
from .encoding.codecs import Codec
from .identity import canonical_json, fingerprint
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
from .untrusted import check_depth, check_no_links, describe_invalid, parse_json

FORMAT_VERSION = 2
NEEDS_SAECACHE = {2: "0.1.0"}  # format version -> the first saecache that reads it; version 1 does not say
MANIFEST_ATTRIBUTE = "saecache"
MAX_MANIFEST_BYTES = 256 << 20
PULL_FOLDER = ".pulling"  # in a folder that a pull from object storage has not finished
# Positions that a cache without token arrays may have been sliced from.
_SLICED_POSITIONS, _SLICED_POSITIONS_PER_ROW = 1 << 32, 1 << 16
_FREE_DECODED_BYTES, _MOST_GROWTH = 64 << 20, 128  # of a compressed array that is decoded as a whole
# Fields that a manifest and its layout have in common; hooks and cut differ in form.
_LAYOUT_FIELDS = ("context", "train_rows", "heldout_rows", "sequences", "tokens", "dtype", "codec")

_Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, le=2**48)]
_Finite = Annotated[float, Field(allow_inf_nan=False, ge=0)]


class FileInfo(FrozenModel):
    """One file of the cache."""

    path: str
    size: _Count
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
    sequences: _Count
    train_rows: _Count
    heldout_rows: _Count
    counts: dict[str, _Count]
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
        return {**values, "checksum": _checksum(values)}


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


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode("utf-8")).hexdigest()


def load_manifest(path: Path | str) -> Manifest:
    """The manifest of the cache in folder ``path``, checked.

    Raises:
        UsageError: no such folder, something else than a cache, or a newer format.
        IncompleteCacheError: the cache is still being written.
        CorruptCacheError: the manifest contradicts itself.
    """
    path = Path(path)
    root = path / "zarr.json"
    if not path.is_dir():
        raise UsageError(f"no cache at {path}: there is no such folder")
    if not root.exists():
        if (path / ".writing").is_dir():
            raise IncompleteCacheError(
                f"the cache at {path} is unfinished: run the command that writes it again, "
                "it continues where it stopped"
            )
        if (path / PULL_FOLDER).is_dir():
            raise IncompleteCacheError(
                f"the cache at {path} is not whole: run the same 'saecache cache pull' again, "
                "it continues where it stopped"
            )
        raise UsageError(f"{path} is not a cache: it has no zarr.json")
    check_no_links(path, ["zarr.json"])
    try:
        content = read_regular(root, MAX_MANIFEST_BYTES)
    except ValueError:
        raise CorruptCacheError(
            f"{root}: more than {MAX_MANIFEST_BYTES} bytes, no manifest is that large"
        ) from None
    except OSError as error:
        raise CorruptCacheError(f"{root} cannot be read: {error.strerror}") from None
    return parse_manifest(content, str(root))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest inside the bytes of a root zarr.json, checked; ``where`` names them in errors."""
    try:
        document = parse_json(content)
    except ValueError as error:
        raise CorruptCacheError(f"{where} is not valid JSON: {error}") from None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    values = attributes.get(MANIFEST_ATTRIBUTE) if isinstance(attributes, dict) else None
    if not isinstance(values, dict):
        raise UsageError(f"{where} has no attribute {MANIFEST_ATTRIBUTE!r}: this is not a saecache cache")
    _check_version(values, where)
    checksum = values.pop("checksum", None)
    try:
        if checksum != _checksum(values):
            raise CorruptCacheError(f"{where}: the manifest does not match its own checksum")
        return Manifest.model_validate(values)
    except (ValidationError, RecursionError, UsageError) as error:
        raise CorruptCacheError(f"{where}: the manifest is not valid: {describe_invalid(error)}") from None


def _check_version(values: Mapping[str, Any], where: str) -> None:
    """Refuse a newer format before anything else of it is read: it names the saecache that reads it."""
    format_version = values.get("format_version")
    if not isinstance(format_version, int) or format_version <= FORMAT_VERSION:
        return
    needed = values.get("needs_saecache")
    known = isinstance(needed, str) and re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", needed) is not None
    newer = f"{needed} or later" if known else "of today"
    raise UsageError(
        f"{where} has format version {format_version}; this saecache ({package_version('saecache')}) reads "
        f"up to version {FORMAT_VERSION}: upgrade to saecache {newer} "
        f"(pip install --upgrade 'saecache{f'>={needed}' if known else ''}')"
    )


def find_growing_arrays(manifest: Manifest) -> set[str]:
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


def check_files(path: Path, manifest: Manifest) -> None:
    """Check that every file is there, is no link, and has the right size. No content is read.

    Raises:
        CorruptCacheError: naming the first file that fails.
    """
    check_no_links(path, (file.path for file in manifest.files))
    for file in manifest.files:
        try:
            found = (path / file.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptCacheError(f"{path / file.path} is missing: the cache is not whole") from None
        if not stat.S_ISREG(found.st_mode):
            raise CorruptCacheError(f"{path / file.path} is not a file")
        if found.st_size != file.size:
            raise CorruptCacheError(
                f"{path / file.path} has {found.st_size} bytes, expected {file.size}: truncated or altered"
            )
