"""Rows as bfloat16 and int8, and compressed shards: the values they should have, for us and for others."""

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr

from saecache.store import (
    BadActivationError,
    CorruptCacheError,
    ShardedArray,
    StorageConfig,
    merge_caches,
    open_cache,
    slice_cache,
    verify_cache,
)
from saecache.store.encoding.number_types import decode_words, encode_words
from saecache.store.manifest_file import load_manifest
from saecache.store.shard_file import crc32c

from .commands import saecache
from .encodings import COMPACT, COMPRESSED, ENCODINGS

HOOKS = {"resid_post.1": 24, "mlp_out.0": 17}
UNIT_ERROR = {"float16": 2.0**-11, "float32": 2.0**-23, "bfloat16": 2.0**-8, "int8": 1 / 254}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, source: Any, write_cache: Callable[..., Any]) -> Path:
    """A cache of the same rows in every encoding, by name."""
    folder = tmp_path_factory.mktemp("encodings")
    for name, storage in ENCODINGS.items():
        write_cache(folder / name, source, storage=storage)
    return folder


def zarr_group(path: Path) -> zarr.Group:
    return zarr.open_group(path, mode="r")


# The number types


def test_bfloat16_is_that_of_torch() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, (500, 64), dtype=np.uint64).astype(np.uint32)
    bits[0, :8] = [0, 0x80000000, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 1, 0x00008000, 0x007FFFFF]
    x = bits.view(np.float32)
    words = np.empty(x.shape, np.uint16)
    bad = encode_words(x, "bfloat16", words, None)
    expected = torch.from_numpy(x).bfloat16()
    fine = torch.isfinite(expected).numpy()
    assert np.array_equal(bad, ~fine.all(axis=1))
    assert np.array_equal(words[fine], expected.view(torch.uint16).numpy()[fine])
    back = decode_words(words[~bad], "bfloat16", None)
    assert np.array_equal(back, expected.float().numpy()[~bad])


def test_int8_is_its_definition() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(300, 33)) * 10.0 ** rng.integers(-20, 20, (300, 1))).astype(np.float32)
    x[0] = 0
    x[1] = 1e-38
    x[2, 5] = np.nan
    x[3, 6] = np.inf
    words, scale = np.empty(x.shape, np.uint8), np.empty(300, np.float32)
    bad = encode_words(x, "int8", words, scale)
    assert np.flatnonzero(bad).tolist() == [2, 3]
    assert scale[:2].tolist() == [0, 0] and not words[:2].any()
    largest = np.abs(x[4:]).max(axis=1, keepdims=True)
    expected = np.rint(x[4:] * (np.float32(127) / largest))
    assert np.array_equal(words[4:].view(np.int8), expected.astype(np.int8))
    assert np.array_equal(np.abs(words[4:].view(np.int8)).max(axis=1), np.full(296, 127))
    back = decode_words(words[4:], "int8", scale[4:])
    assert (np.abs(back - x[4:]) <= largest / 127 * 0.5001).all()


# Whole caches


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_are_as_close_as_their_type(caches: Path, source: Any, name: str) -> None:
    cache = open_cache(caches / name)
    assert verify_cache(caches / name).problems == []
    error = UNIT_ERROR[cache.manifest.dtype]
    for hook in HOOKS:
        for split in ("train", "heldout"):
            n = cache.num_rows(split)
            sequence, position, _ = cache.locate(range(n), split)
            raw = source.raw(hook, sequence * source.context + position).astype(np.float64)
            centered = raw - raw.mean(axis=1, keepdims=True)
            unit = centered / np.linalg.norm(centered, axis=1, keepdims=True)
            got = cache.rows(hook, range(n), split).double().numpy()
            largest = np.abs(unit).max(axis=1, keepdims=True)
            assert (np.abs(got - unit) <= error * largest * 1.01 + 1e-7).all()
            raw_again = cache.rows(hook, range(n), split, normalization="none").double().numpy()
            norm = np.linalg.norm(centered, axis=1, keepdims=True)
            assert (np.abs(raw_again - raw) <= error * largest * norm * 1.01 + 1e-5).all()
        stored = cache.rows(hook, range(len(cache)), normalization="none").double()
        assert np.allclose(cache.statistics(hook).mean, stored.mean(0), rtol=1e-9, atol=1e-6)
        assert np.allclose(cache.statistics(hook).second_moment, (stored**2).mean(0), rtol=1e-6)


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize(
    ("normalization", "dtype"),
    [
        ("unit", torch.float32),
        ("unit", torch.bfloat16),
        ("none", torch.float32),
        ("scale", torch.float16),
        ("layer_norm", torch.bfloat16),
    ],
)
def test_batches_are_rows_in_order(caches: Path, name: str, normalization: str, dtype: torch.dtype) -> None:
    cache = open_cache(caches / name)
    hook = "resid_post.1"
    every = cache.rows(hook, range(len(cache)), normalization=normalization, dtype=dtype)
    settings = {"normalization": normalization, "dtype": dtype}
    first = torch.cat(list(cache.batches(hook, 50, **settings)))
    assert first.dtype == dtype and torch.equal(first, every)
    later = torch.cat(list(cache.batches(hook, 50, epoch=1, seed=3, **settings)))
    plain = open_cache(caches / "float16")
    token = torch.from_numpy(plain.token_index()[:].astype(np.int64))
    order = _order_of(plain, hook)
    assert torch.equal(later, every[order]) and not torch.equal(order, torch.arange(len(token)))
    resumed = torch.cat(list(cache.batches(hook, 50, epoch=1, seed=3, start_batch=3, **settings)))
    assert torch.equal(resumed, later[150:])


def _order_of(cache: Any, hook: str) -> torch.Tensor:
    """Row numbers of epoch 1: rows are told apart by their first elements."""
    every = cache.rows(hook, range(len(cache)))
    places = {row.numpy().tobytes(): number for number, row in enumerate(every)}
    later = torch.cat(list(cache.batches(hook, 50, epoch=1, seed=3)))
    return torch.tensor([places[row.numpy().tobytes()] for row in later])


@pytest.mark.parametrize("name", COMPACT)
def test_bytes_do_not_depend_on_batches(
    caches: Path, source: Any, tmp_path: Path, write_cache: Callable[..., Any], contents: Any, name: str
) -> None:
    write_cache(tmp_path / "c", source, storage=ENCODINGS[name], batch=23, commit_every=1)
    assert contents(tmp_path / "c") == contents(caches / name)


@pytest.mark.parametrize("name", ENCODINGS)
def test_zarr_python_and_tensorstore_read_it(caches: Path, name: str) -> None:
    path = caches / name
    cache, group = open_cache(path), zarr_group(path)
    for spec in cache.manifest.layout.arrays():
        stored = cache.stored(spec)[:]
        assert np.array_equal(group[spec.path][:], stored)
        kvstore = {"driver": "file", "path": str(path / spec.path)}
        theirs = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        assert np.array_equal(theirs.read().result(), stored)
    for hook in HOOKS:  # what a reader of Zarr does with them, without saecache
        node = group[f"rows/{hook}"]
        stored = node["activations"][:]
        if node["activations"].attrs.get("bits_of") == "bfloat16":
            values = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            values = stored.astype(np.float32)
        if "scale" in node:
            values = values * node["scale"][:][:, None]
        assert np.array_equal(values, cache.rows(hook, range(len(cache))).numpy())


@pytest.mark.parametrize("name", ["float16-zstd", "float16-blosc", "int8-zstd"])
def test_we_read_what_zarr_python_compresses(caches: Path, tmp_path: Path, name: str) -> None:
    """The other direction: our reader on shards that zarr-python wrote from our metadata."""
    shutil.copytree(caches / name, tmp_path / "c")
    spec = load_manifest(tmp_path / "c").layout.activations("train", "resid_post.1")
    values = ShardedArray(tmp_path / "c", spec)[:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.open_array(tmp_path / "c" / spec.path, mode="r+")[:] = values[::-1].copy()
    assert np.array_equal(ShardedArray(tmp_path / "c", spec)[:], values[::-1])


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_manifest_says_how_and_how_small(caches: Path, name: str) -> None:
    manifest = load_manifest(caches / name)
    assert manifest.format_version == 2 and manifest.needs_saecache == "0.1.0"
    assert manifest.codec is not None and manifest.codec.kind == ENCODINGS[name]["codec"]["kind"]
    for file in manifest.files:
        assert (caches / name / file.path).stat().st_size == file.size


def test_caches_that_need_no_new_format_do_not_have_it(caches: Path) -> None:
    for name in ("float16", "float32"):
        assert load_manifest(caches / name).format_version == 1
        assert b"codec" not in (caches / name / "zarr.json").read_bytes().split(b"consolidated")[0]


def test_compressible_rows_take_less(tmp_path: Path, make_source: Any, write_cache: Any) -> None:
    source = make_source(40, hooks={"h": 64})
    for hook, x in source.activations.items():
        source.activations[hook] = np.round(np.tanh(x)).astype(np.float32)
    sizes = {}
    for name in ("float16", "float16-zstd", "float16-blosc"):
        storage = ENCODINGS[name] | {"normalization": "none"}
        manifest = write_cache(tmp_path / name, source, storage=storage)
        sizes[name] = sum(file.size for file in manifest.files if "activations" in file.path)
    assert max(sizes["float16-zstd"], sizes["float16-blosc"]) < 0.4 * sizes["float16"]


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
def test_values_that_cannot_be_stored_are_refused(
    tmp_path: Path, make_source: Any, write_cache: Any, name: str, value: float
) -> None:
    source = make_source(10, hooks={"h": 8})
    source.activations["h"][17, 3] = value
    storage = ENCODINGS[name] | {"normalization": "none"}
    with pytest.raises(BadActivationError, match="hook h, document"):
        write_cache(tmp_path / "c", source, storage=storage)


@pytest.mark.parametrize("name", COMPACT)
def test_slices_and_merged_caches_keep_the_encoding(
    caches: Path, source: Any, tmp_path: Path, write_cache: Callable[..., Any], name: str
) -> None:
    cache = open_cache(caches / name)
    slice_cache(cache, tmp_path / "slice", rows=90, hooks=["mlp_out.0"])
    part = open_cache(tmp_path / "slice")
    assert part.manifest.dtype == cache.manifest.dtype and part.manifest.codec == cache.manifest.codec
    assert torch.equal(part.rows("mlp_out.0", range(90)), cache.rows("mlp_out.0", range(90)))
    ids = source.ids + 5000
    other = type(source)(ids, source.documents, source.keep, source.activations)
    write_cache(tmp_path / "other", other, storage=ENCODINGS[name], identity={"source": "test", "text": "b"})
    merge_caches([cache, open_cache(tmp_path / "other")], tmp_path / "merged")
    merged = open_cache(tmp_path / "merged")
    sequence, position, _ = merged.locate(range(len(merged)))
    rows = merged.rows("mlp_out.0", range(len(merged)))
    token = cache.token_index()[:].astype(np.int64)
    places = {int(number): row for row, number in enumerate(token)}
    originals = [places[int(t)] for t in (sequence % 60) * source.context + position]
    assert torch.equal(rows, cache.rows("mlp_out.0", originals))
    assert verify_cache(tmp_path / "slice").ok and verify_cache(tmp_path / "merged").ok


# Compressed shards


def test_what_is_decoded_is_let_go(caches: Path) -> None:
    cache = open_cache(caches / "float16-zstd")
    array = cache.stored(cache.manifest.layout.activations("train", "resid_post.1"))
    kept = array._decoded._chunks  # type: ignore[union-attr]
    for epoch in (0, 1):
        assert sum(len(batch) for batch in cache.batches("resid_post.1", 50, epoch=epoch)) == len(cache)
        assert kept == {}
        some = cache.batches("resid_post.1", 50, epoch=epoch)
        next(some)
        assert kept
        some.close()  # type: ignore[attr-defined]
        assert kept == {}
    cache.rows("resid_post.1", range(0, len(cache), 7))
    assert kept == {}


def reseal(path: Path, spec: Any, edit: Callable[[bytearray], None]) -> None:
    """Change the first chunk of a shard and make its crc32c right again."""
    content = bytearray(path.read_bytes())
    index = np.frombuffer(bytes(content[-(16 * spec.chunks_per_shard + 4) : -4]), "<u8").reshape(-1, 2)
    offset, size = (int(number) for number in index[0])
    chunk = content[offset : offset + size - 4]
    edit(chunk)
    content[offset : offset + size] = chunk + crc32c(bytes(chunk))
    path.write_bytes(content)


def set_size(kind: str, size: int) -> Callable[[bytearray], None]:
    """Let the header of a compressed chunk claim another size."""

    def edit(chunk: bytearray) -> None:
        if kind == "blosc":
            chunk[4:8] = size.to_bytes(4, "little")
        else:  # a zstd frame: its size follows the magic number and one byte of flags
            width = {0: 1, 1: 2, 2: 4, 3: 8}[chunk[4] >> 6]
            value = size - 256 if width == 2 else size
            chunk[5 : 5 + width] = (value % 256**width).to_bytes(width, "little")

    return edit


@pytest.mark.parametrize("name", ["float16-zstd", "float16-blosc"])
@pytest.mark.parametrize("what", ["larger", "smaller", "enormous", "flipped", "nothing but zeros"])
def test_hostile_chunks_are_refused_by_name(
    source: Any, tmp_path: Path, write_cache: Callable[..., Any], name: str, what: str
) -> None:
    manifest = write_cache(tmp_path / "c", source, storage=ENCODINGS[name])
    spec = manifest.layout.activations("train", "mlp_out.0")
    kind = ENCODINGS[name]["codec"]["kind"]
    edits: dict[str, Callable[[bytearray], None]] = {
        "larger": set_size(kind, spec.chunk_bytes + 2),
        "smaller": set_size(kind, spec.chunk_bytes - 2),
        "enormous": set_size(kind, 2**31 - 1),
        "flipped": lambda chunk: chunk.__setitem__(slice(30, 60), bytes(30)),
        "nothing but zeros": lambda chunk: chunk.__setitem__(slice(None), bytes(len(chunk))),
    }
    path = tmp_path / "c" / spec.shard_path(0)
    before = open_cache(tmp_path / "c").rows("mlp_out.0", range(64))
    reseal(path, spec, edits[what])
    cache = open_cache(tmp_path / "c")
    try:
        altered = cache.rows("mlp_out.0", range(64))
    except CorruptCacheError as error:
        assert "c/0/0: chunk 0 cannot be decoded" in str(error)
    else:  # bytes in the middle may stand for other numbers: then only sha256 knows
        assert what == "flipped" and not torch.equal(altered, before)
    assert any(spec.shard_path(0) in problem for problem in verify_cache(tmp_path / "c").problems)


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_error_while_decoding_ahead_reaches_the_reader(
    source: Any, tmp_path: Path, write_cache: Callable[..., Any], epoch: int
) -> None:
    manifest = write_cache(tmp_path / "c", source, storage=ENCODINGS["float16-zstd"])
    spec = manifest.layout.activations("train", "mlp_out.0")
    reseal(
        tmp_path / "c" / spec.shard_path(1),
        spec,
        lambda chunk: chunk.__setitem__(slice(None), b"x" * len(chunk)),
    )
    seen = 0
    with pytest.raises(CorruptCacheError, match="cannot be decoded"):
        for batch in open_cache(tmp_path / "c").batches("mlp_out.0", 16, epoch=epoch):
            seen += len(batch)
    assert seen < len(open_cache(tmp_path / "c"))


@pytest.mark.parametrize("name", ["float16-zstd", "float16-blosc"])
def test_any_bytes_are_decoded_or_refused(name: str) -> None:
    codec = StorageConfig(**ENCODINGS[name]).codec
    assert codec is not None
    chance, chunk = random.Random(0), np.arange(400, dtype=np.float16)
    good = codec.encode(chunk)
    for _ in range(3000):
        altered = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            altered[chance.randrange(len(altered))] = chance.randrange(256)
        if chance.random() < 0.3:
            altered = altered[: chance.randrange(len(altered) + 1)]
        out = np.empty(chunk.nbytes, np.uint8)
        try:
            codec.decode(np.frombuffer(bytes(altered), np.uint8), out)
        except ValueError:
            continue
    out = np.empty(chunk.nbytes, np.uint8)
    codec.decode(np.frombuffer(good, np.uint8), out)
    assert np.array_equal(out.view(np.float16), chunk)


@pytest.mark.parametrize("name", ["float16-zstd", "int8-zstd"])
def test_compressed_caches_from_object_storage(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Decoded from the local copies; a copy that is damaged comes again, also when it is found out ahead."""
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "local"))
    (tmp_path / "team").mkdir()
    url = (tmp_path / "team" / "cache").as_uri()
    assert saecache("push", caches / name, url).exit_code == 0
    plain = open_cache(caches / name)
    for epoch in (0, 1):
        expected = torch.cat(list(plain.batches("resid_post.1", 50, epoch=epoch)))
        assert torch.equal(
            torch.cat(list(open_cache(url).batches("resid_post.1", 50, epoch=epoch))), expected
        )
        damaged = 0
        for file in (tmp_path / "local").rglob("*"):
            if file.is_file() and file.stat().st_size > 1000:
                content = bytearray(file.read_bytes())
                content[7] ^= 1
                file.write_bytes(content)
                damaged += 1
        assert damaged > 2
        assert torch.equal(
            torch.cat(list(open_cache(url).batches("resid_post.1", 50, epoch=epoch))), expected
        )
    slice_cache(open_cache(url), tmp_path / "slice", rows=40)
    assert torch.equal(
        open_cache(tmp_path / "slice").rows("resid_post.1", range(40)), plain.rows("resid_post.1", range(40))
    )
