"""One cache from several that were harvested with the same settings from different parts of a dataset.

The sequences of the first come first, then those of the second, and so on, and all rows are shuffled anew as
one. A document stays on the side of the held-out split where it was, so that nothing which an SAE was trained
on, from any of the caches, is held out of the merged one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ..identity import canonical_json, differences
from ..keys import row_keys
from ..manifest import Manifest
from ..reading.reader import ActivationCache
from .derive import Derivation, Derived, Progress, derive, describe_origin, read_storage, source_identity
from .heldout import MERGED, read_merged_parts
from .replay import Part

PART_KEYS = ("text", "num_tokens")  # of a harvest's identity: what may differ between parts of one dataset
MIN_TOKENS = 32  # of a document that is compared: shorter ones may well be written twice

_BLOCK_TOKENS = 1 << 22
_ACCIDENTAL = 0.01  # share of equal documents that two parts of a dataset may have by chance


def merge_caches(
    sources: Sequence[ActivationCache],
    out: Path | str,
    *,
    memory_bytes: int | None = None,
    on_rows: Progress | None = None,
    on_bytes: Progress | None = None,
) -> Derived:
    """Write the rows of all ``sources`` into a new cache; the same call goes on when it was interrupted.

    Args:
        sources: two or more finished caches whose identities agree in everything but the part of the data.
        out: folder of the new cache.
        memory_bytes, on_rows, on_bytes: as :func:`.derive.derive`.

    Raises:
        UsageError: the identities differ, with every setting in which they do; the same text is in two of
            them; or the folder holds something else.
        CorruptCacheError: a source is damaged.
    """
    if len(sources) < 2:
        raise UsageError(f"merge: expected at least two caches, got {len(sources)}")
    _check_alike(sources)
    _check_different_text(sources)
    parts: list[Part] = []
    described: list[dict[str, Any]] = []
    first_sequence = first_document = 0
    for cache in sources:
        manifest = cache.manifest
        parts.append(Part.whole(cache, first_sequence=first_sequence, first_document=first_document))
        documents = _num_documents(cache)
        described += _describe(manifest, documents)
        first_sequence += manifest.sequences
        first_document += documents
    if first_document >= 2**31:
        raise UsageError(f"merge: {first_document} documents in all; a cache holds at most {2**31 - 1}")
    first = sources[0].manifest
    shared = {key: value for key, value in source_identity(first).items() if key not in (*PART_KEYS, MERGED)}
    derivation = Derivation(
        parts=parts,
        source={**shared, MERGED: described},
        hooks={hook: info.d_model for hook, info in first.hooks.items()},
        storage=read_storage(first),
        counts=_sum_counts([cache.manifest.counts for cache in sources]),
        provenance={"derived": {"by": "merge", "from": [describe_origin(cache) for cache in sources]}},
    )
    return derive(out, derivation, memory_bytes=memory_bytes, on_rows=on_rows, on_bytes=on_bytes)


def _describe(manifest: Manifest, documents: int) -> list[dict[str, Any]]:
    """A part in the identity of the merged cache; one that is merged itself is its parts."""
    if nested := read_merged_parts(manifest):
        return nested
    facts = {key: manifest.identity[key] for key in PART_KEYS if key in manifest.identity}
    own = {"fingerprint": manifest.fingerprint, "sequences": manifest.sequences, "documents": documents}
    return [{**facts, **own}]


def _check_alike(sources: Sequence[ActivationCache]) -> None:
    def shared(cache: ActivationCache) -> dict[str, Any]:
        identity = {k: v for k, v in cache.manifest.identity.items() if k not in (*PART_KEYS, MERGED)}
        return {**identity, "tokens": cache.manifest.tokens}

    first = sources[0]
    for other in sources[1:]:
        if lines := differences(shared(first), shared(other)):
            listed = "\n".join(f"  - {line}" for line in lines)
            raise UsageError(
                f"{first.path} (there) and {other.path} (here) cannot be merged; only their text and "
                f"num_tokens may differ, but these do too:\n{listed}"
            )
        if "slice" in other.manifest.identity or len(other) < other.manifest.train_rows:
            raise UsageError("slices cannot be merged: merge the whole caches, then slice")


def _check_different_text(sources: Sequence[ActivationCache]) -> None:
    """No two hold the same text: by their identities, and then by the documents themselves."""
    seen: dict[str, int] = {}
    for number, cache in enumerate(sources):
        whole = cache.manifest.identity | {"fingerprint": cache.fingerprint}
        for part in read_merged_parts(cache.manifest) or [whole]:
            for name in _text_names(part):
                other = seen.setdefault(name, number)
                if other != number:
                    raise UsageError(
                        f"{sources[other].path} and {cache.path} hold tokens of the same text ({name}): they "
                        "overlap; merge caches of different text, or harvest more tokens of the same text "
                        "with 'saecache harvest --extend'"
                    )
    hashed = [document_hashes(cache) for cache in sources]
    for number, here in enumerate(hashed):
        for earlier, there in enumerate(hashed[:number]):
            common = len(np.intersect1d(here, there, assume_unique=True))
            fewest = min(len(here), len(there))
            if common > _ACCIDENTAL * fewest:
                raise UsageError(
                    f"{sources[earlier].path} and {sources[number].path} hold the same tokens: {common} of "
                    f"{fewest} documents are in both; merge caches of different text"
                )


def _text_names(part: Mapping[str, Any]) -> Iterator[str]:
    """What stands for the text of a part: two caches with one of them in common overlap."""
    yield f"cache {str(part.get('fingerprint'))[:12]}"
    if (text := part.get("text")) is not None:
        yield f"text {canonical_json(text)}"


def _num_documents(cache: ActivationCache) -> int:
    """One more than the largest document number."""
    if cache.manifest.tokens == "none":
        return cache.manifest.sequences
    documents, step = cache.documents, max(1, _BLOCK_TOKENS // cache.context)
    largest = -1
    for first in range(0, len(documents), step):
        largest = max(largest, int(documents[first : min(first + step, len(documents))].max()))
    return largest + 1


def _sum_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for each in counts for name in each)
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def document_hashes(cache: ActivationCache) -> NDArray[np.uint64]:
    """A hash of the tokens of each document of at least :data:`MIN_TOKENS`, uint64, ascending and distinct.

    Where a document lies in the sequences does not matter; a beginning-of-sequence token is not its own. Of
    caches without token ids there is none.
    """
    if cache.manifest.tokens != "ids and documents":
        return np.empty(0, np.uint64)
    ids, documents, step = cache.tokens, cache.documents, max(1, _BLOCK_TOKENS // cache.context)
    found: list[NDArray[np.uint64]] = []  # [3, runs]: document, part of its hash, tokens
    last, seen = -1, 0  # the document at the end of the block before, and its tokens so far
    for first in range(0, len(ids), step):
        block = ids[first : min(first + step, len(ids))]
        numbers = documents[first : first + len(block)]
        own = (numbers >= 0) & ~_begins_sequence(cache, block)
        tokens, numbers = block[own].astype(np.uint64), numbers[own]
        if not len(numbers):
            continue
        starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1])
        counts = np.diff(np.append(starts, len(numbers)))
        places = np.arange(len(numbers)) - np.repeat(starts, counts)
        before = seen if numbers[0] == last else 0
        places[: counts[0]] += before
        parts = np.add.reduceat((tokens + np.uint64(1)) * row_keys(0, places.astype(np.uint64)), starts)
        found.append(np.stack([numbers[starts].astype(np.uint64), parts, counts.astype(np.uint64)]))
        last, seen = int(numbers[-1]), int(counts[-1]) + (before if len(starts) == 1 else 0)
    if not found:
        return np.empty(0, np.uint64)
    runs = np.concatenate(found, axis=1)
    distinct, places = np.unique(runs[0], return_inverse=True)
    sums = np.zeros((2, len(distinct)), np.uint64)
    for total, values in zip(sums, runs[1:], strict=True):
        np.add.at(total, places, values)
    return np.unique(sums[0][sums[1] >= MIN_TOKENS])


def _begins_sequence(cache: ActivationCache, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Positions of ``ids`` [n, context] that are the BOS which packing puts before every sequence."""
    packing = cache.manifest.identity.get("packing")
    bos = packing.get("bos_id") if isinstance(packing, dict) else None
    begins = np.zeros(ids.shape, np.bool_)
    if isinstance(bos, int):
        begins[:, 0] = ids[:, 0] == bos
    return begins
