"""The same bytes for zarr-python, tensorstore and us, in both directions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from saecache.store import CorruptCacheError, ShardedArray, open_cache
from saecache.store.layout import ArraySpec, metadata_bytes
from saecache.store.shard_file import ShardWriter
from saecache.store.writing.shard_units import chunks_of

SHAPES = [(1, 3), (64, 3), (65, 3), (256, 3), (257, 3), (700, 3), (0, 3), (300,), (256,)]
CHUNK, SHARD = 64, 256


def spec_of(shape: tuple[int, ...], dtype: str) -> ArraySpec:
    return ArraySpec("array", shape, dtype, CHUNK, SHARD, ("row", "dimension")[: len(shape)])


def values_of(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 50 + 100).astype(dtype)


def write_ours(root: Path, values: np.ndarray) -> ArraySpec:
    spec = spec_of(values.shape, values.dtype.name)
    (root / "array").mkdir(parents=True)
    (root / "array" / "zarr.json").write_bytes(metadata_bytes(spec.metadata()))
    writer = ShardWriter()
    for shard in range(spec.num_shards):
        rows = values[shard * SHARD : (shard + 1) * SHARD]
        path, chunks = root / spec.shard_path(shard), chunks_of(rows, spec)
        size, _ = writer.write(path, chunks, spec.chunks_per_shard).result()
        assert size == spec.shard_size(shard) == (root / spec.shard_path(shard)).stat().st_size
    writer.close()
    return spec


def tensorstore_of(path: Path, **options: Any) -> Any:
    kvstore = {"driver": "file", "path": str(path)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, **options).result()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint64", "int32"])
def test_others_read_what_we_write(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    values = values_of(shape, dtype)
    spec = write_ours(tmp_path, values)
    assert np.array_equal(zarr.open_array(tmp_path / "array", mode="r")[:], values)
    assert np.array_equal(tensorstore_of(tmp_path / "array").read().result(), values)
    assert np.array_equal(ShardedArray(tmp_path, spec)[:], values)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0]])
@pytest.mark.parametrize("dtype", ["float16", "uint64"])
def test_we_read_what_zarr_python_writes(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    values = values_of(shape, dtype)
    codec = ShardingCodec(
        chunk_shape=(CHUNK, *shape[1:]),
        codecs=[BytesCodec(), Crc32cCodec()],
        index_codecs=[BytesCodec(), Crc32cCodec()],
    )
    array = zarr.create_array(
        tmp_path / "array",
        shape=shape,
        dtype=dtype,
        chunks=(SHARD, *shape[1:]),
        serializer=codec,
        compressors=None,
    )
    array[:] = values
    spec = spec_of(shape, dtype)
    assert same_metadata(json.loads((tmp_path / "array" / "zarr.json").read_text()), spec)
    assert np.array_equal(ShardedArray(tmp_path, spec)[:], values)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0]])
@pytest.mark.parametrize("dtype", ["float16", "uint64"])
def test_we_read_what_tensorstore_writes(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    values = values_of(shape, dtype)
    spec = spec_of(shape, dtype)
    metadata = {
        key: value for key, value in spec.metadata().items() if key not in ("zarr_format", "node_type")
    }
    written = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(tmp_path / "array")},
            "metadata": metadata,
            "create": True,
        }
    ).result()
    written.write(values).result()
    assert np.array_equal(ShardedArray(tmp_path, spec)[:], values)


def test_our_shards_are_those_of_zarr_python_byte_for_byte(tmp_path: Path) -> None:
    values = values_of((700, 3), "float16")
    spec = write_ours(tmp_path / "ours", values)
    theirs = zarr.open_array(tmp_path / "ours" / "array", mode="r+")
    before = {shard: (tmp_path / "ours" / spec.shard_path(shard)).read_bytes() for shard in range(3)}
    theirs[:] = values
    for shard, content in before.items():
        assert (tmp_path / "ours" / spec.shard_path(shard)).read_bytes() == content


def test_chunks_and_shards_that_zarr_python_leaves_out_read_as_zeros(tmp_path: Path) -> None:
    values = values_of((700, 3), "float16")
    values[64:128] = 0  # an empty chunk is not stored
    values[256:512] = 0  # nor is an empty shard
    spec = write_ours(tmp_path, np.ones_like(values))
    zarr.open_array(tmp_path / "array", mode="r+")[:] = values
    size = (tmp_path / spec.shard_path(0)).stat().st_size
    assert size == spec.shard_size(0) - spec.chunk_bytes - 4
    assert not (tmp_path / spec.shard_path(1)).exists()
    assert np.array_equal(ShardedArray(tmp_path, spec, strict=False)[:], values)
    for row in (0, 256):  # in a cache of ours they would be losses
        with pytest.raises(CorruptCacheError):
            ShardedArray(tmp_path, spec)[row]


def test_a_whole_cache_opens_with_zarr_python(cache_path: Path) -> None:
    cache = open_cache(cache_path)
    for consolidated in (True, False):
        group = zarr.open_group(cache_path, mode="r", use_consolidated=consolidated)
        assert group.attrs["saecache"]["fingerprint"] == cache.fingerprint
        for folder, split in (("rows", "train"), ("heldout", "heldout")):
            assert np.array_equal(group[f"{folder}/token"][:], cache.token_index(split)[:])
            for hook in cache.hooks:
                stored = group[f"{folder}/{hook}/activations"]
                rows = cache.rows(hook, np.arange(cache.num_rows(split)), split)
                assert stored.dtype == np.float16
                assert np.array_equal(stored[:].astype(np.float32), rows.numpy())
                assert group[f"{folder}/{hook}/norm"].shape == group[f"{folder}/{hook}/mean"].shape
        assert np.array_equal(group["tokens/ids"][:], cache.tokens[:])
        assert np.array_equal(group["stats/mlp_out.0/mean"][:], cache.statistics("mlp_out.0").mean)
    members = dict(zarr.open_group(cache_path, mode="r", use_consolidated=False).members(max_depth=None))
    listed = dict(zarr.open_group(cache_path, mode="r").members(max_depth=None))
    assert set(members) - set(listed) == {"provenance"}
    assert "created" in members["provenance"].attrs


def test_a_whole_cache_opens_with_tensorstore(cache_path: Path) -> None:
    cache = open_cache(cache_path)
    for spec in cache.manifest.layout.arrays():
        theirs = tensorstore_of(cache_path / spec.path).read().result()
        assert theirs.dtype == np.dtype(spec.dtype)
        assert np.array_equal(theirs, ShardedArray(cache_path, spec)[:])


def same_metadata(theirs: dict[str, Any], spec: ArraySpec) -> bool:
    ours = spec.metadata()
    return all(
        theirs[key] == ours[key] for key in ("shape", "data_type", "chunk_grid", "fill_value", "codecs")
    )
