"""Manifests: what a good one says, and what hostile ones do not achieve."""

import copy
import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from saecache.common.errors import SaecacheError
from saecache.store import CorruptCacheError, UsageError
from saecache.store.identity import canonical_json, differences, fingerprint
from saecache.store.manifest import FORMAT_VERSION, MAX_MANIFEST_BYTES, NEEDS_SAECACHE
from saecache.store.manifest_file import load_manifest, parse_manifest

Edit = Callable[[dict[str, Any]], Any]


def sealed(values: dict[str, Any]) -> bytes:
    """A root zarr.json with these manifest values and the checksum that belongs to them."""
    values = {key: value for key, value in values.items() if key != "checksum"}
    checksum = hashlib.sha256(
        json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    root = {"attributes": {"saecache": {**values, "checksum": checksum.hexdigest()}}}
    return json.dumps(root).encode()


@pytest.fixture(scope="module")
def values(cache_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cache_path / "zarr.json").read_text())["attributes"]["saecache"]
    return found


def test_what_a_manifest_says(cache_path: Path, values: dict[str, Any], source: Any) -> None:
    manifest = load_manifest(cache_path)
    assert manifest == parse_manifest(sealed(values), "x")
    assert manifest.train_rows + manifest.heldout_rows == source.keep.sum()
    assert manifest.identity["source"] == "test"
    assert manifest.identity["hooks"] == source.hooks
    assert manifest.fingerprint == hashlib.sha256(canonical_json(manifest.identity).encode()).hexdigest()
    assert {hook: info.d_model for hook, info in manifest.hooks.items()} == source.hooks
    for file in manifest.files:
        content = (cache_path / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    with pytest.raises(Exception, match="frozen"):
        manifest.context = 3  # type: ignore[misc]


HOSTILE: list[tuple[str, Edit]] = [
    ("a path that climbs out", lambda m: m["files"][0].update(path="../../etc/passwd")),
    ("an absolute path", lambda m: m["files"][0].update(path="/etc/passwd")),
    ("a path of something else", lambda m: m["files"][0].update(path="zarr.json")),
    ("a file twice", lambda m: m["files"].append(m["files"][0])),
    ("a file left out", lambda m: m["files"].pop()),
    ("a file too many", lambda m: m["files"].append(m["files"][0] | {"path": "rows/x"})),
    ("another size", lambda m: m["files"][0].update(size=7)),
    ("a negative size", lambda m: m["files"][0].update(size=-1)),
    ("an absurd size", lambda m: m["files"][0].update(size=2**70)),
    ("a sha256 that is none", lambda m: m["files"][0].update(sha256="x" * 64)),
    ("hook names that climb out", lambda m: m.update(hooks={"../..": m["hooks"]["mlp_out.0"]})),
    ("a hook name with a slash", lambda m: m.update(hooks={"a/b": m["hooks"]["mlp_out.0"]})),
    ("no hooks", lambda m: m.update(hooks={})),
    ("an absurd width", lambda m: m["hooks"]["mlp_out.0"].update(d_model=2**60)),
    ("a width of zero", lambda m: m["hooks"]["mlp_out.0"].update(d_model=0)),
    ("another width", lambda m: m["hooks"]["mlp_out.0"].update(d_model=18)),
    ("NaN", lambda m: m["hooks"]["mlp_out.0"].update(mean_square_norm=float("nan"))),
    ("infinity", lambda m: m["hooks"]["mlp_out.0"]["norm_quantiles"].update({"0.5": float("inf")})),
    ("a negative norm", lambda m: m["hooks"]["mlp_out.0"].update(mean_square_norm=-1.0)),
    ("more rows than there are", lambda m: m.update(train_rows=m["train_rows"] + 1000)),
    ("absurdly many rows", lambda m: m.update(train_rows=2**48)),
    ("absurdly many sequences", lambda m: m.update(sequences=2**48)),
    ("absurd shards", lambda m: m["cut"].update(shard_rows=2**40)),
    ("absurd chunks", lambda m: m["cut"].update(chunk_rows=2**24, shard_rows=2**24)),
    ("chunks of nothing", lambda m: m["cut"].update(chunk_rows=0)),
    ("broken chunks", lambda m: m["cut"].update(chunk_rows=63)),
    ("another type", lambda m: m.update(dtype="object")),
    ("another normalization", lambda m: m.update(normalization="pickle")),
    ("another identity", lambda m: m["identity"].update(source="other")),
    ("an unknown field", lambda m: m.update(run="rm -rf")),
    ("a missing field", lambda m: m.pop("context")),
    ("numbers as text", lambda m: m.update(context="sixteen")),
    ("files as text", lambda m: m.update(files="all")),
    ("a negative count", lambda m: m.update(counts={"x": -1})),
    ("version zero", lambda m: m.update(format_version=0)),
    ("a version that is none", lambda m: m.update(format_version="1")),
    ("tokens of another kind", lambda m: m.update(tokens="maybe")),
]


@pytest.mark.parametrize(("what", "edit"), HOSTILE, ids=[what for what, _ in HOSTILE])
def test_hostile_manifests_are_refused(values: dict[str, Any], what: str, edit: Edit) -> None:
    altered = copy.deepcopy(values)
    edit(altered)
    with pytest.raises(CorruptCacheError, match=r"x: the manifest|not valid JSON: (NaN|Infinity)"):
        parse_manifest(sealed(altered), "x")


def test_every_format_says_who_reads_it() -> None:
    assert list(NEEDS_SAECACHE) == list(range(2, FORMAT_VERSION + 1))
    own = [int(part) for part in version("saecache").split(".")[:3]]
    assert all([int(part) for part in needed.split(".")] <= own for needed in NEEDS_SAECACHE.values())


def test_a_newer_format_is_refused_with_the_version_that_reads_it(values: dict[str, Any]) -> None:
    new = values | {"format_version": FORMAT_VERSION + 1, "news": {}}
    expected = (
        rf"format version {FORMAT_VERSION + 1}; this saecache \(.*\) reads up to version {FORMAT_VERSION}: "
    )
    with pytest.raises(UsageError, match=expected + "upgrade to saecache 7.2.0 or later .*'saecache>=7.2.0'"):
        parse_manifest(sealed(new | {"needs_saecache": "7.2.0"}), "x")
    for nonsense in (
        {},
        {"needs_saecache": 7},
        {"needs_saecache": "7; rm -rf ~"},
        {"needs_saecache": "\x1b[2J"},
    ):
        with pytest.raises(UsageError, match=expected + "upgrade to saecache of today .*'saecache'"):
            parse_manifest(sealed(new | nonsense), "x")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'{"attributes": 3}', b'{"attributes": {"saecache": []}}', b"\xff\xfe"],
)
def test_what_is_no_manifest(content: bytes) -> None:
    with pytest.raises(SaecacheError, match="x"):
        parse_manifest(content, "x")


def test_text_that_cannot_be_encoded(values: dict[str, Any]) -> None:
    content = json.dumps({"attributes": {"saecache": values | {"identity": {"x": "\ud800"}}}}).encode()
    with pytest.raises(CorruptCacheError):
        parse_manifest(content, "x")


def test_a_changed_manifest_is_noticed(cache_path: Path, values: dict[str, Any]) -> None:
    content = (cache_path / "zarr.json").read_bytes()
    altered = content.replace(b'"train_rows": ', b'"train_rows": 1')
    assert altered != content
    with pytest.raises(CorruptCacheError, match="does not match its own checksum"):
        parse_manifest(altered, "x")


def test_a_manifest_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "zarr.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(CorruptCacheError, match="no manifest is that large"):
        load_manifest(tmp_path)


def test_identity_and_differences() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert canonical_json({"ü": 1.5, "a": None}) == '{"a":null,"ü":1.5}'
    lines = differences({"a": {"b": 1, "c": [1]}, "d": "x" * 200}, {"a": {"b": 2, "c": [1]}, "e": 1})
    assert lines[0] == "a.b: 1 there, 2 here"
    assert lines[1].startswith("d: 'xxx") and len(lines[1]) < 120 and lines[1].endswith("(nothing) here")
    assert lines[2] == "e: (nothing) there, 1 here"
