"""A cache in another number type or compression."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from ...common.errors import UsageError
from ..encoding.codecs import BloscCodec, ZstdCodec
from ..layout import StoredDtype
from ..reading.reader import ActivationCache
from .derive import Derivation, Derived, Progress, derive, describe_origin, read_storage, source_identity
from .replay import Part


def convert_cache(
    source: ActivationCache,
    out: Path | str,
    *,
    dtype: StoredDtype | None = None,
    codec: ZstdCodec | BloscCodec | Literal["keep"] | None = "keep",
    memory_bytes: int | None = None,
    on_rows: Progress | None = None,
    on_bytes: Progress | None = None,
) -> Derived:
    """Copy ``source`` into a new cache that is stored in another way; the same call goes on when interrupted.

    From float32, and where only the compression changes, the new cache is the one that a harvest with these
    settings makes. From a shorter type rows are rounded a second time, and the identity says so.

    Args:
        source: a finished cache.
        out: folder of the new cache.
        dtype: number type of the rows, None for that of the source.
        codec: compression of the rows, None for none, ``keep`` for that of the source.
        memory_bytes, on_rows, on_bytes: as :func:`.derive.derive`.

    Raises:
        UsageError: nothing would change, or a folder that holds something else.
        BadActivationError: values that the type cannot hold.
        CorruptCacheError: the source is damaged.
    """
    manifest, before = source.manifest, read_storage(source.manifest)
    storage = before.model_copy(
        update={"dtype": dtype or before.dtype, "codec": before.codec if codec == "keep" else codec}
    )
    if storage == before:
        raise UsageError(f"{source.path} is stored like that already; name another dtype or codec")
    identity: dict[str, Any] = source_identity(manifest)
    if storage.dtype != before.dtype and before.dtype != "float32":
        identity["converted_from"] = [*_as_list(identity.get("converted_from")), before.dtype]
    if len(source) < manifest.train_rows:
        raise UsageError("convert takes whole caches: slice it first")
    derivation = Derivation(
        parts=[Part.whole(source)],
        source=identity,
        hooks={hook: info.d_model for hook, info in manifest.hooks.items()},
        storage=storage,
        counts=manifest.counts,
        provenance={"derived": {"by": "convert", "from": [describe_origin(source)]}},
    )
    return derive(out, derivation, memory_bytes=memory_bytes, on_rows=on_rows, on_bytes=on_bytes)


def parse_codec(name: str, level: int | None) -> ZstdCodec | BloscCodec | Literal["keep"] | None:
    """The codec that a command line names: ``zstd``, ``blosc``, ``none`` or ``keep``.

    Raises:
        UsageError: there is no such codec, or it has no such level.
    """
    given = {} if level is None else {"level": level}
    if name in ("zstd", "blosc"):
        try:
            return ZstdCodec(**given) if name == "zstd" else BloscCodec(**given)
        except ValidationError as error:
            raise UsageError(f"level of {name}: {error.errors()[0]['msg']}, got {level}") from None
    if name not in ("none", "keep"):
        raise UsageError(f"no codec {name!r}; expected zstd, blosc, none or keep")
    if level is not None:
        raise UsageError(f"a level belongs to the codec zstd or blosc, not to {name}")
    return "keep" if name == "keep" else None


def parse_dtype(name: str) -> StoredDtype:
    """The number type of that name.

    Raises:
        UsageError: rows are not stored as such.
    """
    if name not in get_args(StoredDtype):
        raise UsageError(f"no dtype {name!r}; expected one of {', '.join(get_args(StoredDtype))}")
    return name  # type: ignore[return-value]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
