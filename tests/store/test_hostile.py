"""Caches from people who mean harm: refused by name, before anything is read outside or much memory taken."""

import copy
import hashlib
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from saecache.common.errors import SaecacheError
from saecache.store import (
    CacheWriter,
    CorruptCacheError,
    ShardedArray,
    UsageError,
    convert_cache,
    inspect_output,
    open_cache,
    slice_cache,
    verify_cache,
)
from saecache.store.encoding.codecs import ZstdCodec
from saecache.store.identity import fingerprint
from saecache.store.info import describe, read_provenance
from saecache.store.layout import ArraySpec
from saecache.store.manifest import Manifest
from saecache.store.manifest_file import load_manifest, parse_manifest
from saecache.store.shard_file import crc32c, parse_index
from saecache.store.untrusted_json import MAX_DEPTH, MAX_METADATA_BYTES, check_depth, parse_json

EXAMPLES = 5000 if os.environ.get("SAECACHE_LONG_TESTS") else 300
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def sealed(values: dict[str, Any]) -> bytes:
    """A root zarr.json with these manifest values, and the fingerprint and checksum that belong to them."""
    values = {key: value for key, value in values.items() if key != "checksum"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    checksum = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return json.dumps({"attributes": {"saecache": {**values, "checksum": checksum}}}).encode()


@contextmanager
def little_memory(limit_bytes: int = 64 << 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


def values_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]["saecache"]
    return found


@pytest.fixture(scope="module")
def values(cache_path: Path) -> dict[str, Any]:
    return values_of(cache_path)


@pytest.fixture(scope="module")
def compressed_values(
    tmp_path_factory: pytest.TempPathFactory, source: Any, write_cache: Callable[..., Any]
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("compressed") / "cache"
    write_cache(path, source, storage={"dtype": "int8", "codec": {"kind": "zstd"}})
    return values_of(path)


@pytest.fixture
def copied(tmp_path: Path, cache_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "copy")
    return tmp_path / "copy"


# Manifests


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_json(values: dict[str, Any], depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    with pytest.raises(CorruptCacheError):
        parse_manifest(b'{"attributes": {"saecache": ' + deep + b"}}", "x")


def test_an_identity_too_deep_to_be_shown(values: dict[str, Any]) -> None:
    identity: dict[str, Any] = {}
    for _ in range(MAX_DEPTH + 1):
        identity = {"a": [identity]}
    altered = values | {"identity": identity, "fingerprint": fingerprint(identity)}
    with pytest.raises(CorruptCacheError, match="more than 64 levels"):
        parse_manifest(sealed(altered), "x")
    check_depth([[1, {"a": "b"}], "text"], "fine")


def test_one_name_twice(values: dict[str, Any]) -> None:
    """Another program would read the other value; the checksum is of one of them only."""
    content = sealed(values)
    doubled = content.replace(b'"context": 16', b'"context": 99, "context": 16')
    assert doubled != content
    with pytest.raises(CorruptCacheError, match="'context' stands twice"):
        parse_manifest(doubled, "x")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000])
def test_numbers_that_are_none(values: dict[str, Any], number: bytes) -> None:
    content = sealed(values).replace(b'"identity": {', b'"identity": {"x": ' + number + b", ")
    with pytest.raises(CorruptCacheError):
        parse_manifest(content, "x")


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'{"a":[]},', b"[[]],"])
def test_a_file_of_brackets_does_not_fill_the_memory(unit: bytes) -> None:
    content = b"[" + unit * (8_000_000 // len(unit)) + b"0]"
    with little_memory(), pytest.raises(CorruptCacheError, match="more lists and objects"):
        parse_manifest(content, "x")


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(train_rows=2**48),
        lambda m: m.update(sequences=2**48, context=2**24),
        lambda m: m["cut"].update(chunk_rows=1, shard_rows=1),
        lambda m: m["cut"].update(chunk_rows=1, shard_rows=2**40),
        lambda m: m["hooks"]["mlp_out.0"].update(d_model=2**24),
    ],
)
def test_absurd_numbers_take_no_memory(values: dict[str, Any], edit: Callable[[Any], Any]) -> None:
    altered = copy.deepcopy(values)
    edit(altered)
    content = sealed(altered)
    with little_memory(16 << 20), pytest.raises(CorruptCacheError):
        parse_manifest(content, "x")


def test_a_table_of_files_of_no_such_cache_is_not_made(values: dict[str, Any]) -> None:
    row = {"path": "rows/a/b/c/0", "size": 1, "sha256": "0" * 64}
    content = sealed(values | {"files": [row] * 100_000})
    with (
        little_memory(16 * len(content)),
        pytest.raises(CorruptCacheError, match=r"files: .* shards, got 100000"),
    ):
        parse_manifest(content, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@fuzz
@given(data=st.data())
def test_any_altered_field_is_refused_or_harmless(
    values: dict[str, Any], compressed_values: dict[str, Any], data: st.DataObject
) -> None:
    """Whatever stands in up to three fields: only our own errors come out, and no path leads elsewhere."""
    altered = copy.deepcopy(values if data.draw(st.booleans()) else compressed_values)
    for _ in range(data.draw(st.integers(1, 3))):
        target: Any = altered
        while True:
            keys = sorted(target) if isinstance(target, dict) else range(len(target))
            key = data.draw(st.sampled_from(keys))
            if isinstance(target[key], dict | list) and target[key] and data.draw(st.booleans()):
                target = target[key]
                continue
            target[key] = data.draw(JSON)
            break
    if isinstance(altered.get("identity"), dict) and data.draw(st.booleans()):
        try:
            altered["fingerprint"] = fingerprint(altered["identity"])
        except SaecacheError:
            return
    try:
        manifest = parse_manifest(sealed(altered), "x")
    except SaecacheError:
        return
    assert isinstance(manifest, Manifest)
    for file in manifest.files:
        place = Path(file.path)
        assert not place.is_absolute() and ".." not in place.parts
    describe(manifest)


@fuzz
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]",:0eN.\\u ', max_size=60).map(str.encode))
@example(content=b'{"a":1,"a":1}')
@example(content=b"-")
def test_any_bytes_are_a_value_or_a_value_error(content: bytes) -> None:
    try:
        parse_json(content)
    except ValueError:
        return
    with pytest.raises(SaecacheError):
        parse_manifest(content, "x")


# Files


def test_a_folder_in_place_of_a_shard(copied: Path) -> None:
    path = copied / load_manifest(copied).files[0].path
    path.unlink()
    path.mkdir()
    with pytest.raises(CorruptCacheError, match="is not a file"):
        open_cache(copied)


@pytest.mark.parametrize("place", ["shard", "folder", "top", "manifest"])
def test_links_are_refused_even_with_the_right_bytes(copied: Path, tmp_path: Path, place: str) -> None:
    shard = load_manifest(copied).files[0].path
    name = {"shard": shard, "folder": shard.rpartition("/")[0], "top": "tokens", "manifest": "zarr.json"}[
        place
    ]
    (copied / name).rename(tmp_path / "elsewhere")
    (copied / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptCacheError, match=f"{name} is a link"):
        open_cache(copied)
    if place == "manifest":
        with pytest.raises(CorruptCacheError, match=f"{name} is a link"):
            verify_cache(copied)
    else:
        (problem,) = verify_cache(copied).problems
        assert problem.startswith(f"{name} is a link")


@pytest.mark.parametrize("place", [".writing/spill", "rows", ".writing/spill/token"])
def test_an_unfinished_cache_is_not_written_through_a_link(tmp_path: Path, place: str) -> None:
    def write() -> None:
        with CacheWriter(tmp_path / "c", hooks={"h": 4}, identity={}) as writer:
            writer.write_rows({"h": np.ones((9, 4), np.float32)})
            writer.commit()
            if not (tmp_path / "outside").exists():
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    (tmp_path / "outside").mkdir()
    link = tmp_path / "c" / place
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match=f"{place} is a link"):
        write()
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("array", ["norm", "activations"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_numbers_of_a_source_that_are_none(
    source: Any, tmp_path: Path, write_cache: Callable[..., Any], array: str, value: float
) -> None:
    """A cache made of a hostile one is refused or sound, and an error is told as one."""
    manifest = write_cache(tmp_path / "c", source)
    spec = getattr(manifest.layout, array)("train", "mlp_out.0")
    path = tmp_path / "c" / spec.shard_path(0)
    content = bytearray(path.read_bytes())
    content[: spec.row_bytes] = np.full(
        spec.row_bytes // np.dtype(spec.dtype).itemsize, value, spec.dtype
    ).tobytes()
    content[spec.chunk_bytes : spec.chunk_bytes + 4] = crc32c(bytes(content[: spec.chunk_bytes]))
    path.write_bytes(content)
    cache = open_cache(tmp_path / "c")
    for make in (
        lambda out: slice_cache(cache, out, rows=50),
        lambda out: convert_cache(cache, out, dtype="int8"),
    ):
        try:
            make(tmp_path / "out")
        except SaecacheError as error:
            assert "mlp_out.0" in str(error)
        else:
            assert np.isfinite(value) and verify_cache(tmp_path / "out").ok
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_the_way_to_a_cache_may_be_a_link(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copied)
    assert open_cache(tmp_path / "link").hooks == open_cache(copied).hooks
    assert verify_cache(tmp_path / "link").ok


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"{", b"3", b'{"attributes": [1]}', b"\xff", b'{"a":1,"a":2}']
)
def test_hostile_metadata_beside_the_manifest(copied: Path, content: bytes) -> None:
    (copied / "provenance" / "zarr.json").write_bytes(content)
    (copied / "rows" / "zarr.json").write_bytes(content)
    assert read_provenance(copied) == {}
    (problem,) = verify_cache(copied).problems
    assert problem.startswith("rows/zarr.json: not")


def test_metadata_of_absurd_length_are_not_read(copied: Path) -> None:
    for name in ("provenance", "rows"):
        with (copied / name / "zarr.json").open("wb") as file:
            file.truncate(64 * MAX_METADATA_BYTES)
    with little_memory():
        assert read_provenance(copied) == {}
        assert len(verify_cache(copied).problems) == 1


def test_deep_json_in_a_folder_is_not_taken_for_a_cache(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_bytes(b"[" * 100_000)
    assert inspect_output(tmp_path) == "foreign"


def test_what_steers_a_terminal_is_shown_instead(values: dict[str, Any]) -> None:
    identity = values["identity"] | {"x\x1b[2J": "\x1b]0;title\x07", "hooks": values["identity"]["hooks"]}
    altered = values | {"identity": identity, "fingerprint": fingerprint(identity), "counts": {"\x1b[1m": 1}}
    shown = describe(parse_manifest(sealed(altered), "x"), {"who": "\x9b31m"})
    assert all(text.isprintable() for line in shown for text in line)


# Shard indexes

SPEC = ArraySpec("a", (10, 2), "float16", 4, 12, ("row", "dimension"))
STORED = SPEC.chunk_bytes + 4
SIZE = SPEC.shard_size(0)


def index_of(*numbers: int) -> bytes:
    table = struct.pack(f"<{len(numbers)}Q", *numbers)
    return table + crc32c(table)


@pytest.mark.parametrize("second", [0, 1, STORED - 1, STORED + 1, 2 * STORED - 1])
def test_chunks_that_overlap_are_refused(second: int) -> None:
    with pytest.raises(CorruptCacheError, match=r"f: index entries \d and \d overlap"):
        parse_index(index_of(0, STORED, second, STORED, STORED, STORED), SPEC, "f", SIZE)


def test_an_overlap_on_the_disk_is_found_when_it_is_read(copied: Path) -> None:
    spec = load_manifest(copied).layout.activations("train", "mlp_out.0")
    path = copied / spec.shard_path(0)
    content = bytearray(path.read_bytes())
    table = np.frombuffer(content[-(16 * spec.chunks_per_shard + 4) : -4], "<u8").reshape(-1, 2).copy()
    table[1] = table[0]
    content[-(16 * spec.chunks_per_shard + 4) :] = table.tobytes() + crc32c(table.tobytes())
    path.write_bytes(content)
    cache = open_cache(copied)
    with pytest.raises(CorruptCacheError, match=r"c/0/0: index entries 0 and 1 overlap"):
        cache.rows("mlp_out.0", [0])
    assert any("overlap" in problem for problem in verify_cache(copied).problems)


NUMBERS = st.integers(0, 2**64 - 1) | st.sampled_from(
    [0, STORED - 1, STORED, STORED + 1, 2 * STORED, SIZE - 1, SIZE, 2**63, 2**64 - STORED, 2**64 - 1]
)


@fuzz
@given(numbers=st.lists(NUMBERS, min_size=6, max_size=6), size=st.integers(0, 2 * SIZE) | st.just(SIZE))
def test_any_index_is_refused_or_points_inside(numbers: list[int], size: int) -> None:
    try:
        places = parse_index(index_of(*numbers), SPEC, "f", size)
    except CorruptCacheError:
        return
    present = sorted((offset, stored) for offset, stored in places.tolist() if offset >= 0)
    ends = [offset + stored for offset, stored in present]
    assert all(stored == STORED for _, stored in present)
    assert all(end <= size - (16 * 3 + 4) for end in ends)
    assert all(end <= offset for end, (offset, _) in zip(ends, present[1:], strict=False))


@fuzz
@given(numbers=st.lists(NUMBERS, min_size=6, max_size=6), size=st.integers(0, 2 * SIZE) | st.just(SIZE))
@example(numbers=[0, 5, 5, 9, 14, STORED], size=SIZE)
def test_any_index_of_a_compressed_shard_too(numbers: list[int], size: int) -> None:
    compressed = replace(SPEC, codec=ZstdCodec())
    try:
        places = parse_index(index_of(*numbers), compressed, "f", size)
    except CorruptCacheError:
        return
    present = sorted((offset, stored) for offset, stored in places.tolist() if offset >= 0)
    assert all(4 < stored <= compressed.max_stored_bytes for _, stored in present)
    ends = [offset + stored for offset, stored in present]
    assert all(end <= size - (16 * 3 + 4) for end in ends)
    assert all(end <= offset for end, (offset, _) in zip(ends, present[1:], strict=False))


def test_the_sizes_of_compressed_files_must_be_possible(compressed_values: dict[str, Any]) -> None:
    place = next(i for i, f in enumerate(compressed_values["files"]) if "activations" in f["path"])
    for size in (0, 20, 10**9, 2**47):
        altered = copy.deepcopy(compressed_values)
        altered["files"][place]["size"] = size
        with pytest.raises(CorruptCacheError, match="files: expected"):
            parse_manifest(sealed(altered), "x")


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(format_version=1),
        lambda m: m.update(codec={"kind": "pickle"}),
        lambda m: m.update(codec={"kind": "zstd", "level": 99}),
        lambda m: m.update(codec={"kind": "blosc", "cname": "../x"}),
        lambda m: m.update(codec={"kind": "zstd", "run": "rm"}),
        lambda m: m.update(codec=None),
        lambda m: m.update(dtype="object"),
        lambda m: m.update(dtype="float16"),
    ],
)
def test_encodings_that_cannot_be(compressed_values: dict[str, Any], edit: Callable[[Any], Any]) -> None:
    altered = copy.deepcopy(compressed_values)
    edit(altered)
    with pytest.raises(CorruptCacheError, match="x: the manifest is not valid"):
        parse_manifest(sealed(altered), "x")


@fuzz
@given(data=st.data())
def test_any_altered_shard_is_read_as_it_was_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    rows = np.arange(20, dtype="<f2").reshape(10, 2)
    content = bytearray()
    for first in range(0, 10, 4):
        chunk = np.zeros((4, 2), "<f2")
        chunk[: len(rows[first : first + 4])] = rows[first : first + 4]
        content += chunk.tobytes() + crc32c(chunk.tobytes())
    content += index_of(0, STORED, STORED, STORED, 2 * STORED, STORED)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # an index that somebody made on purpose
        content[-4:] = crc32c(bytes(content[-52:-4]))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / SPEC.shard_path(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        assert np.array_equal(ShardedArray(tmp_path, SPEC)[:], rows)
    except CorruptCacheError as error:
        assert "a/c/0/0" in str(error)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300, "a\0b", "\ud800"])
def test_a_name_that_no_folder_can_have(name: str) -> None:
    for use in (open_cache, verify_cache, inspect_output):
        if use is inspect_output:
            assert inspect_output(name) == "absent"
            continue
        with pytest.raises(UsageError, match="there is no such folder"):
            use(name)
