"""What makes two caches the same: the canonical identity, its fingerprint, and how two of them differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..common.errors import UsageError
from .config import StorageConfig

OWN_KEYS = ("hooks", "context", "seed", "heldout_fraction", "storage")  # what the writer adds to a source
_ABSENT: Any = object()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, no NaN: equal values give equal text.

    Raises:
        UsageError: a value that JSON cannot hold.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:  # half a surrogate pair is a ValueError too
        raise UsageError(f"expected plain JSON values (no NaN, no objects), got: {error}") from None
    return text


def fingerprint(identity: Mapping[str, Any]) -> str:
    """What a cache is known by: :func:`sha256_of_json` of its identity."""
    return sha256_of_json(identity)


def sha256_of_json(values: Mapping[str, Any]) -> str:
    """sha256, in hex, of the canonical JSON of ``values``."""
    return hashlib.sha256(canonical_json(values).encode("utf-8")).hexdigest()


def whole_identity(
    source: Mapping[str, Any],
    hooks: Mapping[str, int],
    context: int,
    seed: int,
    heldout_fraction: float,
    storage: StorageConfig,
) -> dict[str, Any]:
    """Facts about the source, and everything else that decides the bytes of a cache, as plain JSON.

    Raises:
        UsageError: the source uses a key of ours, or holds what is not JSON.
    """
    own = {
        "hooks": dict(hooks),
        "context": context,
        "seed": seed,
        "heldout_fraction": float(heldout_fraction),
        "storage": storage.identity(),
    }
    assert set(own) == set(OWN_KEYS)
    if clash := sorted(own.keys() & source.keys()):
        raise UsageError(f"identity: {', '.join(clash)}: the writer adds these, leave them out")
    whole: dict[str, Any] = json.loads(canonical_json({**source, **own}))
    return whole


def differences(expected: Any, got: Any, where: str = "") -> list[str]:
    """Lines ``key.sub: <expected> there, <got> here`` for every leaf in which two identities differ."""
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        lines: list[str] = []
        for key in sorted({*expected, *got}):
            place = f"{where}.{key}" if where else str(key)
            lines += differences(expected.get(key, _ABSENT), got.get(key, _ABSENT), place)
        return lines
    if expected == got:
        return []
    return [f"{where}: {_show(expected)} there, {_show(got)} here"]


def _show(value: Any) -> str:
    text = "(nothing)" if value is _ABSENT else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
