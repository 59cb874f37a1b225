"""Whether two caches hold the same tokens in the same order, so that their rows may be read together.

Base and tuned model, for example: row r of both is then the same token of the same text. It is checked by
what the caches store (the token of every row, the token ids and the documents), not by their settings.
"""

import re

import numpy as np

from ...common.errors import UsageError
from ..identity import differences
from ..layout import SPLITS, ArraySpec
from .contents import CacheContents

MAX_LINES = 12  # differences that a message lists
_OF_THE_MODEL = ("model", "tokenizer", "hooks")  # keys of an identity that may differ
_BLOCK_BYTES = 1 << 24


def check_name(name: str) -> None:
    """Refuse a name that cannot come before the colon of ``NAME:HOOK``.

    Raises:
        UsageError: it is not made of letters, digits, ``_`` and ``-``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UsageError(f"expected letters, digits, _ and - as the name of a cache, got {name!r}")


def check_same_tokens(cache: CacheContents, other: CacheContents, name: str) -> None:
    """Make sure that row r of ``other`` is the same token as row r of ``cache``, in every epoch.

    Arrays that are cut alike are compared by the sha256 of their files, which both manifests list: nothing is
    read. Caches without token ids have no text to compare, and need the same identity but for the model.

    Raises:
        UsageError: it is not; the message says what differs, and how to harvest a cache that fits.
    """
    problems = _problems_of_sizes(cache, other)
    if not problems:
        problems = _problems_of_content(cache, other)
    settings = _different_settings(cache, other)
    if not problems and cache.manifest.tokens != "ids and documents":
        problems = settings
    if not problems:
        return
    lines = list(dict.fromkeys([*problems, *settings]))
    listed = "\n".join(
        f"  - {line}" for line in [*lines[:MAX_LINES], *["and more"] * (len(lines) > MAX_LINES)]
    )
    raise UsageError(
        f"the rows of {other.path} ({name}) cannot be read beside those of {cache.path}: they are not of the "
        f"same tokens in the same order (there: {cache.path}, here: {other.path}):\n{listed}\n"
        f"{_how_to_fix(cache, other)}"
    )


def _problems_of_sizes(cache: CacheContents, other: CacheContents) -> list[str]:
    expected, got = (
        {
            "context": c.context,
            "sequences": c.manifest.sequences,
            "training rows": c.manifest.train_rows,
            "held-out rows": c.manifest.heldout_rows,
            "tokens": c.manifest.tokens,
            "storage.chunk_rows": c.manifest.cut.chunk_rows,  # rows are read by chunk
        }
        for c in (cache, other)
    )
    return differences(expected, got)


def _problems_of_content(cache: CacheContents, other: CacheContents) -> list[str]:
    mine, theirs = cache.manifest.layout, other.manifest.layout
    pairs = [(mine.token(split), theirs.token(split)) for split in SPLITS]
    pairs += zip(mine.sequence_arrays().values(), theirs.sequence_arrays().values(), strict=True)
    return [
        f"{a.path}: other content there than here"
        for a, b in pairs
        if (_checksums(cache, a) != _checksums(other, b) if a == b else not _same_numbers(cache, a, other, b))
    ]


def _checksums(cache: CacheContents, spec: ArraySpec) -> list[str]:
    sha256 = {file.path: file.sha256 for file in cache.manifest.files}
    return [sha256[spec.shard_path(shard)] for shard in range(spec.num_shards)]


def _same_numbers(cache: CacheContents, a: ArraySpec, other: CacheContents, b: ArraySpec) -> bool:
    """For arrays of one shape that are cut into other files."""
    mine, theirs, step = cache.stored(a), other.stored(b), max(1, _BLOCK_BYTES // a.row_bytes)
    return all(
        np.array_equal(mine[start : start + step], theirs[start : start + step])
        for start in range(0, a.shape[0], step)
    )


def _different_settings(cache: CacheContents, other: CacheContents) -> list[str]:
    there, here = (
        {key: value for key, value in c.manifest.identity.items() if key not in _OF_THE_MODEL}
        for c in (cache, other)
    )
    return differences(there, here)


def _how_to_fix(cache: CacheContents, other: CacheContents) -> str:
    selections = [c.manifest.identity.get("selection") for c in (cache, other)]
    if any(isinstance(found, dict) and found.get("sink_ratio") is not None for found in selections):
        return (
            "selection.sink_ratio left out the attention sinks of each model, which are other tokens: "
            "harvest both with selection.sink_ratio=null, and set sink_ratio of the training run instead, "
            "which leaves a row out of all hooks"
        )
    return "Harvest it again with the recipe and the settings of the other cache, and change model.name alone"
