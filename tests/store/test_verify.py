"""``verify`` finds every altered byte and names its file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import IncompleteCacheError, UsageError, verify_cache
from saecache.store.layout import metadata_bytes
from saecache.store.manifest_file import load_manifest
from saecache.store.writing.publish import root_metadata


@pytest.fixture
def copy(tmp_path: Path, cache_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_sound_cache(cache_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_cache(cache_path, on_progress=lambda done, total: seen.append((done, total)))
    manifest = load_manifest(cache_path)
    assert report.ok and report.problems == []
    assert report.files == len(manifest.files) == len(seen)
    assert report.bytes == sum(file.size for file in manifest.files) == seen[-1][0] == seen[-1][1]


def test_what_is_wrong_with_a_shard_is_said(copy: Path) -> None:
    manifest = load_manifest(copy)
    cut, gone, grown, flipped, indexed = [file.path for file in manifest.files if "activations" in file.path][
        :5
    ]
    (copy / cut).write_bytes((copy / cut).read_bytes()[:-1])
    (copy / gone).unlink()
    (copy / grown).write_bytes((copy / grown).read_bytes() + b"\0")
    for name, place in ((flipped, 7), (indexed, -9)):
        content = bytearray((copy / name).read_bytes())
        content[place] ^= 1
        (copy / name).write_bytes(content)
    problems = verify_cache(copy).problems
    said = [
        next(problem for problem in problems if problem.startswith(name))
        for name in (cut, gone, grown, flipped, indexed)
    ]
    for problem, expected in zip(
        said, ("expected", "No such file", "expected", "chunk 0", "index"), strict=True
    ):
        assert expected in problem
    assert len(problems) == 5


def test_wrong_bytes_with_right_checksums_of_their_own(copy: Path) -> None:
    """Two shards exchanged: every crc32c is right, only the manifest knows."""
    one, two = [
        file.path
        for file in load_manifest(copy).files
        if file.path.startswith("rows/resid_post.1/activations")
    ][:2]
    first, second = (copy / one).read_bytes(), (copy / two).read_bytes()
    (copy / one).write_bytes(second)
    (copy / two).write_bytes(first)
    assert [problem.split(":")[0] for problem in verify_cache(copy).problems] == [one, two]


def test_altered_and_missing_metadata(copy: Path) -> None:
    spec = load_manifest(copy).layout.ids()
    (copy / spec.path / "zarr.json").write_bytes(metadata_bytes(spec.metadata() | {"shape": [1, 1]}))
    (copy / "rows" / "zarr.json").unlink()
    (copy / "heldout" / "zarr.json").write_text("{")
    problems = verify_cache(copy).problems
    assert [problem.split(":")[0] for problem in problems] == [
        "heldout/zarr.json",
        "rows/zarr.json",
        "tokens/ids/zarr.json",
    ]


def test_rows_in_another_order_than_the_seed_says(copy: Path) -> None:
    manifest = load_manifest(copy)
    identity = manifest.identity | {"seed": 12345}
    other = manifest.from_layout(
        manifest.layout,
        identity,
        dict(manifest.hooks),
        manifest.normalization,
        counts=manifest.counts,
        files=manifest.files,
    )
    (copy / "zarr.json").write_bytes(metadata_bytes(root_metadata(other)))
    problems = verify_cache(copy).problems
    assert problems == ["rows/token: rows are not in the order that follows from the seed"]


def test_what_is_no_cache(tmp_path: Path, source: Any, write_cache: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        verify_cache(tmp_path / "none")
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    with pytest.raises(UsageError, match="not a saecache cache"):
        verify_cache(tmp_path)
    (tmp_path / "c" / ".writing").mkdir(parents=True)
    with pytest.raises(IncompleteCacheError):
        verify_cache(tmp_path / "c")
