"""Rows that are not finite are never handed out, and verify names them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saecache.store import CorruptCacheError, open_cache, verify_cache
from saecache.store.encoding import checksum
from saecache.store.finite import NotFiniteError, check_finite, is_finite
from saecache.store.layout import ArraySpec
from saecache.store.manifest_file import load_manifest

from .altering import alter

HOOK = "resid_post.1"
NAN = {"float16": 0x7E00, "bfloat16": 0xFFC0, "float32": 0x7F800001}  # bits; the last is a signalling NaN
INFINITY = {"float16": 0xFC00, "bfloat16": 0x7F80, "float32": 0xFF800000}


@pytest.fixture
def copied(tmp_path: Path, cache_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def with_nan(copied: Path) -> Path:
    def edit(values: NDArray[Any]) -> None:
        values[70, 3] = np.nan

    alter(copied, load_manifest(copied).layout.activations("train", HOOK), edit)
    return copied


READS: dict[str, Callable[[Any], Any]] = {
    "batches": lambda cache: list(cache.batches(HOOK, 64)),
    "batches of a later epoch": lambda cache: list(cache.batches(HOOK, 64, epoch=3)),
    "rows": lambda cache: cache.rows(HOOK, [70]),
    "rows of the same chunk": lambda cache: cache.rows(HOOK, [71]),
    "the array": lambda cache: cache.stored(cache.manifest.layout.activations("train", HOOK))[64:65],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_nan_is_an_error_that_names_the_row(with_nan: Path, read: Callable[[Any], Any]) -> None:
    cache = open_cache(with_nan)
    for _ in range(2):  # the second time as well
        with pytest.raises(CorruptCacheError, match=rf"{HOOK}/activations/c/.*NaN or infinity in row 70;"):
            read(cache)
    assert len(cache.rows(HOOK, [0])) == 1  # other chunks can be read
    assert len(list(cache.batches("mlp_out.0", 64)))


def test_verify_names_the_rows(with_nan: Path) -> None:
    def edit(values: NDArray[Any]) -> None:
        values[[5, *range(128, 140)]] = -np.inf

    alter(with_nan, load_manifest(with_nan).layout.norm("train", HOOK), edit)
    problems = verify_cache(with_nan).problems
    assert len(problems) == 3
    assert all("NaN or infinity in row" in problem for problem in problems)
    assert any("row 70;" in problem for problem in problems)
    assert any("row 5;" in problem for problem in problems)
    assert any("rows 128, 129, 130, 131, 132 and 7 more of this chunk" in problem for problem in problems)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kinds", [NAN, INFINITY], ids=["NaN", "infinity"])
def test_every_number_type(
    tmp_path: Path, source: Any, write_cache: Callable[..., Any], dtype: str, kinds: dict[str, int]
) -> None:
    write_cache(tmp_path / "c", source, storage={"dtype": dtype})
    spec = load_manifest(tmp_path / "c").layout.activations("heldout", HOOK)
    last = spec.shape[0] - 1

    def edit(values: NDArray[Any]) -> None:
        values.view(f"u{values.dtype.itemsize}")[last, -1] = kinds[dtype]

    alter(tmp_path / "c", spec, edit)
    with pytest.raises(NotFiniteError, match=f"row {last};"):
        open_cache(tmp_path / "c").rows(HOOK, [last], split="heldout")
    assert [f"row {last};" in problem for problem in verify_cache(tmp_path / "c").problems] == [True]


def test_the_scale_of_int8_rows(tmp_path: Path, source: Any, write_cache: Callable[..., Any]) -> None:
    write_cache(tmp_path / "c", source, storage={"dtype": "int8"})
    spec = load_manifest(tmp_path / "c").layout.scale("train", HOOK)

    def edit(values: NDArray[Any]) -> None:
        values[9] = np.nan

    alter(tmp_path / "c", spec, edit)
    with pytest.raises(NotFiniteError, match="scale/c/0: NaN or infinity in row 9;"):
        open_cache(tmp_path / "c").rows(HOOK, [9])


def test_compressed_rows(
    tmp_path: Path, source: Any, write_cache: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A codec that gives out NaN stands for a file that was written so."""
    write_cache(tmp_path / "c", source, storage={"codec": {"kind": "zstd"}})
    cache = open_cache(tmp_path / "c")
    codec = type(cache.manifest.codec)
    decode: Callable[..., None] = codec.decode

    def spoiled(self: Any, payload: Any, out: NDArray[np.uint8]) -> None:
        decode(self, payload, out)
        out[:2] = 0, 0x7C

    monkeypatch.setattr(codec, "decode", spoiled)
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="row 0;"):
            list(cache.batches(HOOK, 64))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_check_is_that_of_numpy(dtype: str) -> None:
    rng = np.random.default_rng(0)
    spec = ArraySpec("x", (40, 3), dtype, 16, 32, ("row", "dimension"))
    for _ in range(300):
        bits = rng.integers(0, 256, (16, spec.row_bytes), dtype=np.uint8)
        rows = bits.view(dtype).reshape(16, 3)
        rows[~np.isfinite(rows) & (rng.random(rows.shape) < 0.9)] = 0
        for number, real in ((0, 16), (2, 8)):  # the last chunk has 8 rows and padding
            block = bits.reshape(-1)[: real * spec.row_bytes]
            finite = bool(np.isfinite(rows[:real]).all())
            assert is_finite(block, spec) == checksum.is_finite(block, spec) == finite
            bad = (16 * number + np.flatnonzero(~np.isfinite(rows[:real]).all(axis=1))).tolist()
            try:
                check_finite(bits.reshape(-1), spec, number, "x")
                assert bad == []
            except NotFiniteError as error:
                found = re.search(r"rows? ([0-9, ]+)", str(error))
                assert found and [int(row) for row in found[1].split(",")] == bad[:5]


def test_locate_refuses_rows_of_sequences_that_are_not_there(copied: Path) -> None:
    manifest = load_manifest(copied)
    beyond = manifest.sequences * manifest.context

    def edit(values: NDArray[Any]) -> None:
        values[3], values[4] = beyond, 2**64 - 1

    alter(copied, manifest.layout.token("train"), edit)
    cache = open_cache(copied)
    assert len(cache.locate([0, 1])[0]) == 2
    for row, token in ((3, beyond), (4, 2**64 - 1)):
        with pytest.raises(CorruptCacheError, match=f"rows/token: row {row} is of token {token},"):
            cache.locate([0, row])
