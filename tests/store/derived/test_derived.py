"""Slices and merged caches: the rows they should have, every guarantee kept, whatever interrupts them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.store import (
    CacheWriter,
    CorruptCacheError,
    SaecacheError,
    StorageConfig,
    UsageError,
    inspect_output,
    open_cache,
    verify_cache,
)
from saecache.store.derived import merging
from saecache.store.derived.merging import merge_caches
from saecache.store.derived.slicing import slice_cache
from saecache.store.keys import is_heldout
from saecache.store.writing.journal import Journal, write_journal

Write = Callable[..., Any]
HOOKS = {"resid_post.1": 24, "mlp_out.0": 17}


def arrays_only(contents: dict[str, bytes]) -> dict[str, bytes]:
    """All but the manifest, which names the identity."""
    return {path: content for path, content in contents.items() if path != "zarr.json"}


# Slices


def test_a_slice_by_hooks_is_a_harvest_of_those_hooks(
    cache_path: Path, source: Any, tmp_path: Path, write_cache: Write, contents: Callable[..., Any]
) -> None:
    result = slice_cache(open_cache(cache_path), tmp_path / "slice", hooks=["mlp_out.0"])
    one = type(source)(
        source.ids, source.documents, source.keep, {"mlp_out.0": source.activations["mlp_out.0"]}
    )
    write_cache(tmp_path / "direct", one)
    assert not result.reused
    assert contents(tmp_path / "slice") == contents(tmp_path / "direct")
    assert verify_cache(tmp_path / "slice").ok


def test_a_slice_by_rows_is_the_beginning(cache_path: Path, tmp_path: Path) -> None:
    whole = open_cache(cache_path)
    slice_cache(whole, tmp_path / "slice", rows=100, heldout_rows=7)
    part = open_cache(tmp_path / "slice")
    assert (len(part), part.num_rows("heldout")) == (100, 7)
    assert part.fingerprint != whole.fingerprint
    for hook in whole.hooks:
        for split, count in (("train", 100), ("heldout", 7)):
            assert torch.equal(part.rows(hook, range(count), split), whole.rows(hook, range(count), split))
        raw = whole.rows(hook, range(100), normalization="none").double()
        assert np.allclose(part.statistics(hook).mean, raw.mean(0))
    for expected, got in zip(whole.locate(range(100)), part.locate(range(100)), strict=True):
        assert np.array_equal(expected, got)
    assert verify_cache(part.path).problems == []
    derived = part.provenance["derived"]
    assert derived["by"] == "slice" and derived["from"][0]["fingerprint"] == whole.fingerprint
    assert part.manifest.identity["slice"] == {"train_rows": 100, "heldout_rows": 7}


def test_a_slice_of_a_slice_is_a_slice(
    cache_path: Path, tmp_path: Path, contents: Callable[..., Any]
) -> None:
    whole = open_cache(cache_path)
    slice_cache(whole, tmp_path / "100", rows=100)
    slice_cache(open_cache(tmp_path / "100"), tmp_path / "twice", rows=60, hooks=["resid_post.1"])
    slice_cache(whole, tmp_path / "once", rows=60, hooks=["resid_post.1"])
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_hooks_whose_rows_depend_on_the_others_are_named(
    source: Any, tmp_path: Path, write_cache: Write
) -> None:
    """Where sinks of any hook were dropped, a slice is not what a harvest of its hooks alone would be."""
    write_cache(tmp_path / "c", source, identity={"selection": {"sink_ratio": 5.0}})
    slice_cache(open_cache(tmp_path / "c"), tmp_path / "s", hooks=["mlp_out.0"])
    identity = open_cache(tmp_path / "s").manifest.identity
    assert identity["slice"] == {"of_hooks": ["mlp_out.0", "resid_post.1"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hooks": ["mlp_out.7"]}, "no hook 'mlp_out.7'"),
        ({"hooks": []}, "expected different hooks"),
        ({"hooks": ["mlp_out.0", "mlp_out.0"]}, "expected different hooks"),
        ({"rows": 0}, "rows: expected from 1 to"),
        ({"rows": 10**9}, "rows: expected from 1 to"),
        ({"heldout_rows": -1}, "heldout_rows: expected from 0"),
    ],
)
def test_slices_that_cannot_be(
    cache_path: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        slice_cache(open_cache(cache_path), tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


def test_the_same_again_does_nothing_and_another_is_refused(cache_path: Path, tmp_path: Path) -> None:
    whole = open_cache(cache_path)
    first = slice_cache(whole, tmp_path / "s", rows=50)
    before = (tmp_path / "s" / "zarr.json").stat().st_mtime_ns
    again = slice_cache(whole, tmp_path / "s", rows=50)
    assert again.reused and again.manifest == first.manifest
    assert (tmp_path / "s" / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"slice.train_rows: 50 there, 51 here"):
        slice_cache(whole, tmp_path / "s", rows=51)


def test_a_damaged_source_is_named_and_nothing_is_finished(
    source: Any, tmp_path: Path, write_cache: Write
) -> None:
    manifest = write_cache(tmp_path / "c", source)
    name = manifest.layout.activations("train", "mlp_out.0").shard_path(1)
    content = bytearray((tmp_path / "c" / name).read_bytes())
    content[5] ^= 1
    (tmp_path / "c" / name).write_bytes(content)
    with pytest.raises(CorruptCacheError, match=name):
        slice_cache(open_cache(tmp_path / "c"), tmp_path / "s")
    assert inspect_output(tmp_path / "s") != "complete"


# Merging


def part_of(source: Any, first: int, last: int) -> Any:
    """Sequences ``first:last`` of a source, with documents counted from 0."""
    rows = np.concatenate([[0], np.cumsum(source.keep.sum(axis=1))])
    documents = source.documents[first:last]
    return type(source)(
        source.ids[first:last],
        documents - documents.min(),
        source.keep[first:last],
        {hook: x[rows[first] : rows[last]] for hook, x in source.activations.items()},
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, source: Any, write_cache: Write) -> list[Path]:
    """Three parts of one data set, harvested alike."""
    folder = tmp_path_factory.mktemp("parts")
    for name, first, last in (("a", 0, 24), ("b", 24, 30), ("c", 30, 60)):
        identity = {"model": "m", "text": {"file": name}, "num_tokens": last - first}
        write_cache(folder / name, part_of(source, first, last), identity=identity)
    return [folder / name for name in "abc"]


def test_merged_caches_are_one_long_harvest(
    source: Any, tmp_path: Path, write_cache: Write, contents: Callable[..., Any]
) -> None:
    """But for the held-out split, which stays as it was in each, every array has the same bytes."""
    for name, first, last in (("a", 0, 24), ("b", 24, 60)):
        identity = {"text": name}
        write_cache(tmp_path / name, part_of(source, first, last), identity=identity, heldout_fraction=0.0)
    write_cache(tmp_path / "whole", source, heldout_fraction=0.0)
    merge_caches([open_cache(tmp_path / name) for name in "ab"], tmp_path / "merged")
    assert arrays_only(contents(tmp_path / "merged")) == arrays_only(contents(tmp_path / "whole"))
    assert verify_cache(tmp_path / "merged").ok


def test_documents_stay_on_their_side_of_the_split(parts: list[Path], tmp_path: Path, source: Any) -> None:
    caches = [open_cache(path) for path in parts]
    merge_caches(caches, tmp_path / "merged")
    merged = open_cache(tmp_path / "merged")
    assert verify_cache(merged.path).problems == []
    for split in ("train", "heldout"):
        assert merged.num_rows(split) == sum(cache.num_rows(split) for cache in caches) > 0
        sequence, position, document = merged.locate(range(merged.num_rows(split)), split)
        assert np.array_equal(document, source.documents[sequence, position])
        local = document - np.array([0, 8, 10])[np.searchsorted([24, 30], sequence, side="right")]
        assert (is_heldout(0, local, 0.2) == (split == "heldout")).all()
        for hook in merged.hooks:
            rows = merged.rows(hook, range(len(sequence)), split, normalization="none").numpy()
            raw = source.raw(hook, sequence * source.context + position)
            assert np.abs(rows - raw).max() < 0.01 * np.abs(raw).max()
    assert [part["sequences"] for part in merged.manifest.identity["merged"]] == [24, 6, 30]
    assert merged.manifest.sequences == 60
    assert [each["fingerprint"] for each in merged.provenance["derived"]["from"]] == [
        cache.fingerprint for cache in caches
    ]


def test_merging_in_steps_is_merging_at_once(
    parts: list[Path], tmp_path: Path, contents: Callable[..., Any]
) -> None:
    a, b, c = [open_cache(path) for path in parts]
    merge_caches([a, b], tmp_path / "ab")
    merge_caches([open_cache(tmp_path / "ab"), c], tmp_path / "in steps")
    merge_caches([a, b, c], tmp_path / "at once")
    assert contents(tmp_path / "in steps") == contents(tmp_path / "at once")


def test_the_order_of_the_merged_rows_is_a_shuffle(parts: list[Path], tmp_path: Path) -> None:
    """Among the first rows are those of every part, in proportion."""
    merge_caches([open_cache(path) for path in parts], tmp_path / "merged")
    merged = open_cache(tmp_path / "merged")
    sequence, _, _ = merged.locate(range(len(merged)))
    place = np.arange(len(merged)) / len(merged)
    for first, last in ((0, 24), (24, 30), (30, 60)):
        inside = (sequence >= first) & (sequence < last)
        assert abs(place[inside].mean() - 0.5) < 4 / np.sqrt(12 * inside.sum())


def test_what_cannot_be_merged(source: Any, tmp_path: Path, write_cache: Write, parts: list[Path]) -> None:
    a, b, _ = [open_cache(path) for path in parts]

    def other(name: str, **settings: Any) -> Any:
        settings = {"identity": {"model": "m", "text": {"file": name}, "num_tokens": 6}} | settings
        write_cache(tmp_path / name, part_of(source, 24, 30), **settings)
        return open_cache(tmp_path / name)

    cases = [
        ([a], "at least two caches"),
        ([a, a], "same text"),
        ([a, b, a], "same text"),
        ([a, other("seed", seed=7)], "(?s)cannot be merged.*seed: 0 there, 7 here"),
        ([a, other("dtype", storage={"dtype": "float32"})], "storage.dtype: 'float16' there, 'float32' here"),
        ([a, other("model", identity={"model": "n", "text": 3})], "model: 'm' there, 'n' here"),
        ([b, other("copied")], "hold the same tokens: 2 of 2 documents"),
    ]
    for caches, message in cases:
        with pytest.raises(UsageError, match=message):
            merge_caches(caches, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
    slice_cache(a, tmp_path / "sa", rows=10)
    slice_cache(b, tmp_path / "sb", rows=10)
    with pytest.raises(UsageError, match="slices cannot be merged"):
        merge_caches([open_cache(tmp_path / "sa"), open_cache(tmp_path / "sb")], tmp_path / "merged")


def test_a_merged_cache_with_another_cache_of_one_of_its_parts(parts: list[Path], tmp_path: Path) -> None:
    a, b, c = [open_cache(path) for path in parts]
    merge_caches([a, b], tmp_path / "ab")
    merge_caches([b, c], tmp_path / "bc")
    with pytest.raises(UsageError, match="hold tokens of the same text"):
        merge_caches([open_cache(tmp_path / "ab"), open_cache(tmp_path / "bc")], tmp_path / "abbc")


def test_rows_without_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = {name: rng.normal(size=(200, 8)).astype(np.float32) for name in "ab"}
    for name, x in rows.items():
        with CacheWriter(
            tmp_path / name,
            hooks={"h": 8},
            identity={"text": name},
            heldout_fraction=0.25,
            storage=StorageConfig(chunk_rows=16, shard_bytes=4096),
        ) as writer:
            writer.write_rows({"h": x})
    merge_caches([open_cache(tmp_path / name) for name in "ab"], tmp_path / "m")
    merged = open_cache(tmp_path / "m")
    joined = np.concatenate([rows["a"], rows["b"]])
    for split in ("train", "heldout"):
        sequence, _, _ = merged.locate(range(merged.num_rows(split)), split)
        got = merged.rows("h", range(len(sequence)), split, normalization="none").numpy()
        assert np.abs(got - joined[sequence]).max() < 0.01
    assert verify_cache(tmp_path / "m").problems == []


def test_a_row_on_the_wrong_side_of_the_split_is_found(
    source: Any, tmp_path: Path, write_cache: Write
) -> None:
    """A cache whose identity claims another held-out fraction than it was written with."""
    from saecache.store.layout import metadata_bytes
    from saecache.store.writing.publish import root_metadata

    manifest = write_cache(tmp_path / "c", source, heldout_fraction=0.2)
    other = type(manifest).from_layout(
        manifest.layout,
        manifest.identity | {"heldout_fraction": 0.6},
        dict(manifest.hooks),
        manifest.normalization,
        counts=manifest.counts,
        files=manifest.files,
    )
    (tmp_path / "c" / "zarr.json").write_bytes(metadata_bytes(root_metadata(other)))
    (problem,) = verify_cache(tmp_path / "c").problems
    assert problem.startswith("rows/token: row") and "is held out" in problem


def packed(lengths: list[int], context: int, bos: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and documents [n, context]: a document is a function of its length, a sequence begins with BOS."""
    text = [np.random.default_rng([length, 1]).integers(1, 1000, length) for length in lengths]
    ids = np.concatenate(text)
    documents = np.repeat(np.arange(len(lengths)), lengths)
    rest = len(ids) // (context - 1) * (context - 1)
    rows = [array[:rest].reshape(-1, context - 1) for array in (ids, documents)]
    return (
        np.concatenate([np.full((len(rows[0]), 1), bos), rows[0]], axis=1),
        np.concatenate([rows[1][:, :1], rows[1]], axis=1),
    )


@pytest.mark.parametrize("shared", [0, 1, 20])
def test_shared_documents_are_found_wherever_they_lie(tmp_path: Path, shared: int) -> None:
    """The same documents in another place of other sequences; short ones may be in both."""
    common = list(range(200, 200 + shared))
    lengths = {"a": [*range(40, 140), *common, 5, 6], "b": [150, 5, *common, 6, *range(300, 400)]}
    for name, of_documents in lengths.items():
        ids, documents = packed(of_documents, context=16, bos=7)
        with CacheWriter(
            tmp_path / name, hooks={"h": 4}, context=16, identity={"text": name, "packing": {"bos_id": 7}}
        ) as writer:
            keep = np.zeros(ids.shape, np.bool_)
            keep[:, 3] = True
            rows = np.random.default_rng(0).normal(size=(len(ids), 4)).astype(np.float32)
            writer.write_sequences(ids=ids, documents=documents, keep=keep, activations={"h": rows})
    caches = [open_cache(tmp_path / name) for name in "ab"]
    if shared <= 1:  # one in a hundred may be chance
        merge_caches(caches, tmp_path / "m")
        return
    with pytest.raises(UsageError, match=r"hold the same tokens: 20 of 12. documents"):
        merge_caches(caches, tmp_path / "m")


def test_documents_are_told_apart_across_blocks(monkeypatch: pytest.MonkeyPatch, cache_path: Path) -> None:
    cache = open_cache(cache_path)
    whole = merging.document_hashes(cache)
    assert len(whole) == 20  # each of 48 tokens, in three sequences
    monkeypatch.setattr(merging, "_BLOCK_TOKENS", 16)
    assert np.array_equal(merging.document_hashes(cache), whole)


# Folders that something else has changed


def test_a_finished_slice_that_lost_a_shard_is_not_called_done(cache_path: Path, tmp_path: Path) -> None:
    manifest = slice_cache(open_cache(cache_path), tmp_path / "s", rows=100).manifest
    (tmp_path / "s" / manifest.files[0].path).unlink()
    with pytest.raises(CorruptCacheError, match="is missing: the cache is not whole"):
        slice_cache(open_cache(cache_path), tmp_path / "s", rows=100)


def test_a_manifest_beside_the_journal_of_another_cache_is_refused(cache_path: Path, tmp_path: Path) -> None:
    wanted = slice_cache(open_cache(cache_path), tmp_path / "wanted", rows=100).manifest
    slice_cache(open_cache(cache_path), tmp_path / "s", rows=50)
    (tmp_path / "s" / ".writing").mkdir()
    write_journal(
        tmp_path / "s", Journal(identity=wanted.identity, num_buckets=1, progress={"replayed": [3, 0]})
    )
    with pytest.raises(CorruptCacheError, match="the manifest beside it is of another cache"):
        slice_cache(open_cache(cache_path), tmp_path / "s", rows=100)


@pytest.mark.parametrize("name", [".writing", ".writing/journal.json"])
def test_what_stands_in_place_of_the_work_is_refused(cache_path: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "s" / ".writing").parent.mkdir()
    if name == ".writing":
        (tmp_path / "s" / name).touch()
    else:
        (tmp_path / "s" / name).mkdir(parents=True)
    with pytest.raises(SaecacheError, match=r"holds something else than a cache|is damaged or of another"):
        slice_cache(open_cache(cache_path), tmp_path / "s", rows=100)


def test_files_that_another_process_removes_meanwhile(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that writes the same cache: the lock says so, not a file that is gone."""
    (tmp_path / "s" / ".writing").mkdir(parents=True)
    walk, rglob, is_file = os.walk, Path.rglob, Path.is_file

    def listed_before(folder: Path) -> Any:
        for place, folders, files in walk(folder):
            yield place, folders, [*files, "journal.json.tmp"]

    monkeypatch.setattr(os, "walk", listed_before)
    monkeypatch.setattr(Path, "is_file", lambda path: path.suffix == ".tmp" or is_file(path))
    monkeypatch.setattr(Path, "rglob", lambda path, _: [*rglob(path, "*"), path / "journal.json.tmp"])
    assert not slice_cache(open_cache(cache_path), tmp_path / "s", rows=100).reused
