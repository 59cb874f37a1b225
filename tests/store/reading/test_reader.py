"""Reading: batches, rows, places, and what is refused."""

import gc
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saecache.store import (
    ActivationCache,
    CacheWriter,
    CorruptCacheError,
    StorageConfig,
    UsageError,
    open_cache,
)

from ...killing import DEADLINE_SECONDS

HOOK = "resid_post.1"
KINDS = ["unit", "none", "scale", "unit_scale", "layer_norm"]


@pytest.fixture
def cache(cache_path: Path) -> ActivationCache:
    return open_cache(cache_path)


def raw_rows(cache: ActivationCache, source: Any, hook: str = HOOK, split: str = "train") -> np.ndarray:
    return source.raw(hook, cache.token_index(split)[:])


def all_of(cache: ActivationCache, *arguments: Any, **settings: Any) -> torch.Tensor:
    return torch.cat(list(cache.batches(*arguments, **settings)))


def normalized(x: np.ndarray, kind: str, cache: ActivationCache, hook: str) -> np.ndarray:
    x = x.astype(np.float64)
    centered = x - x.mean(axis=1, keepdims=True)
    unit = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    to_one = x / np.sqrt(cache.statistics(hook).mean_square_norm)
    width = np.sqrt(x.shape[1])
    kinds = {"unit": unit, "none": x, "layer_norm": unit * width, "scale": to_one * width}
    return (kinds | {"unit_scale": to_one})[kind]


@pytest.mark.parametrize("stored", ["unit", "none"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_normalization_from_either_stored_form(
    tmp_path: Path, source: Any, write_cache: Callable[..., Any], stored: str, dtype: str
) -> None:
    write_cache(tmp_path / "c", source, storage={"normalization": stored, "dtype": dtype})
    cache = open_cache(tmp_path / "c")
    tolerance = 2e-3 if dtype == "float16" else 2e-6
    for hook in cache.hooks:
        for split in ("train", "heldout"):
            raw = raw_rows(cache, source, hook, split)
            for kind in KINDS:
                got = all_of(cache, hook, 31, split=split, normalization=kind).numpy()
                expected = normalized(raw, kind, cache, hook)
                assert got.dtype == np.float32
                assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()
                if kind == "unit_scale" and split == "train":
                    assert np.square(got.astype(np.float64)).sum(1).mean() == pytest.approx(1, rel=1e-3)
                normalizer = cache.normalizer(hook, kind)
                x = torch.from_numpy(raw)
                y, state = normalizer.apply(x)
                assert np.abs(y.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
                assert torch.allclose(normalizer.invert(y, state), x, rtol=1e-4, atol=1e-4)
                assert type(normalizer).from_dict(normalizer.to_dict()) == normalizer


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows_per_batch=st.integers(1, 300),
    epoch=st.integers(0, 2),
    start=st.integers(0, 20),
    drop_last=st.booleans(),
    num_rows=st.one_of(st.none(), st.integers(300, 500)),
    sink_ratio=st.sampled_from([None, 1.0, 2.5]),
)
def test_batches_are_cuts_of_one_order(
    cache: ActivationCache,
    rows_per_batch: int,
    epoch: int,
    start: int,
    drop_last: bool,
    num_rows: int | None,
    sink_ratio: float | None,
) -> None:
    """The contract in one property: coverage, order, resumption, filter and counts."""
    options: dict[str, Any] = {"seed": 3, "epoch": epoch, "num_rows": num_rows, "sink_ratio": sink_ratio}
    kept = cache.num_batches(1, num_rows=num_rows, hook=HOOK, sink_ratio=sink_ratio)
    rows_per_batch = min(rows_per_batch, kept)
    whole = all_of(cache, HOOK, 100, **options)
    assert len(whole) == kept
    batches = list(cache.batches(HOOK, rows_per_batch, start_batch=start, drop_last=drop_last, **options))
    count = cache.num_batches(
        rows_per_batch, num_rows=num_rows, drop_last=drop_last, hook=HOOK, sink_ratio=sink_ratio
    )
    assert len(batches) == max(0, count - start)
    assert all(len(batch) == rows_per_batch for batch in batches[:-1])
    assert all(batch.shape[1] == 24 and batch.is_contiguous() for batch in batches)
    if batches:
        expected = whole[start * rows_per_batch : (start + len(batches)) * rows_per_batch]
        assert torch.equal(torch.cat(batches), expected)
    stored = cache.rows(HOOK, np.arange(num_rows or len(cache)))
    if sink_ratio is None:
        assert torch.equal(sorted_rows(whole), sorted_rows(stored))
    if epoch == 0 and sink_ratio is None:
        assert torch.equal(whole, stored)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    own=st.sampled_from([(0, 40), (40, 90), (90, 120), (30, 60)]),
    pieces=st.sampled_from([1, 2, 5]),
    epoch=st.integers(0, 2),
    start=st.integers(0, 5),
    drop_last=st.booleans(),
    sink_ratio=st.sampled_from([None, 1.0]),
)
def test_own_rows_are_cuts_of_the_batches(
    cache: ActivationCache,
    own: tuple[int, int],
    pieces: int,
    epoch: int,
    start: int,
    drop_last: bool,
    sink_ratio: float | None,
) -> None:
    options: dict[str, Any] = {"seed": 3, "epoch": epoch, "start_batch": start, "drop_last": drop_last}
    whole = [batch[slice(*own)] for batch in cache.batches(HOOK, 120, sink_ratio=sink_ratio, **options)]
    parts = list(
        cache.batches(HOOK, 120, sink_ratio=sink_ratio, own_rows=slice(*own), pieces=pieces, **options)
    )
    size = (own[1] - own[0]) // pieces
    expected = [piece for batch in whole for piece in torch.split(batch, size) if len(piece)]
    assert [len(part) for part in parts] == [len(piece) for piece in expected]
    assert torch.equal(torch.cat([torch.empty(0, 24), *parts]), torch.cat([torch.empty(0, 24), *expected]))


def test_chunks_without_own_rows_are_not_read(cache: ActivationCache) -> None:
    array = cache._row_reader(HOOK, "train", None).activations
    chunk_rows, chunks = array.spec.chunk_rows, len(cache) // array.spec.chunk_rows
    assert chunks >= 6
    batch_rows = 3 * chunk_rows
    list(cache.batches(HOOK, batch_rows, own_rows=slice(chunk_rows, 2 * chunk_rows), drop_last=True))
    whole = chunks // 3 * 3
    assert [i for i in range(chunks) if array.is_checked(i)] == list(range(1, whole, 3))


@pytest.mark.parametrize(
    ("own_rows", "pieces"), [(slice(5, 5), 1), (slice(0, 10), 3), (slice(0, 10, 2), 1), (slice(0, 9), 0)]
)
def test_own_rows_that_cannot_be(cache: ActivationCache, own_rows: slice, pieces: int) -> None:
    with pytest.raises(UsageError, match="expected consecutive rows of a batch"):
        cache.batches(HOOK, 20, own_rows=own_rows, pieces=pieces)


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows[np.lexsort(rows.numpy().T)]


def test_sinks_are_left_out(cache: ActivationCache, source: Any) -> None:
    raw = raw_rows(cache, source).astype(np.float64)
    norms = np.linalg.norm(raw - raw.mean(axis=1, keepdims=True), axis=1)
    limit = 1.5 * cache.statistics(HOOK).norm_quantiles["0.5"]
    expected = cache.rows(HOOK, np.flatnonzero(norms <= limit))
    assert 0 < len(expected) < len(cache)
    assert torch.equal(all_of(cache, HOOK, 50, sink_ratio=1.5), expected)


def test_epoch_order_is_a_function_of_seed_and_epoch(cache: ActivationCache) -> None:
    def epoch(seed: int, number: int) -> torch.Tensor:
        return all_of(cache, HOOK, 64, seed=seed, epoch=number)

    assert torch.equal(epoch(0, 1), epoch(0, 1))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
    assert not torch.equal(epoch(0, 1), epoch(1, 1))
    assert torch.equal(epoch(0, 0), epoch(1, 0))  # the stored order is the shuffle


def test_heldout_comes_in_reading_order_in_every_epoch(cache: ActivationCache) -> None:
    token = cache.token_index("heldout")[:]
    assert (np.diff(token.astype(np.int64)) > 0).all()
    first = all_of(cache, HOOK, 10, split="heldout")
    assert torch.equal(first, all_of(cache, HOOK, 10, split="heldout", epoch=3, seed=5))


def test_the_same_row_is_the_same_token_under_every_hook(cache: ActivationCache, source: Any) -> None:
    numbers = [5, 1, 300, 7]
    token = cache.token_index()[numbers]
    for hook in cache.hooks:
        got = cache.rows(hook, numbers, normalization="none").numpy()
        assert np.abs(got - source.raw(hook, token)).max() < 0.02


@pytest.mark.parametrize("epoch", [0, 1])
def test_batches_of_two_hooks_hold_the_same_tokens(cache: ActivationCache, source: Any, epoch: int) -> None:
    token = cache.token_index()[:]
    both = zip(
        *(cache.batches(hook, 40, epoch=epoch, normalization="none") for hook in cache.hooks), strict=True
    )
    rows = [source.raw(hook, token) for hook in cache.hooks]
    for batches in both:
        places = [
            np.abs(whole[None] - batch[:5].numpy()[:, None]).max(axis=2).argmin(axis=1)
            for whole, batch in zip(rows, batches, strict=True)
        ]
        assert np.array_equal(*places)


def test_rows_in_any_order_and_form(cache: ActivationCache) -> None:
    whole = cache.rows(HOOK, np.arange(len(cache)))
    numbers = np.random.default_rng(0).integers(0, len(cache), 500)
    expected = whole[torch.from_numpy(numbers)]
    assert torch.equal(cache.rows(HOOK, numbers), expected)
    assert torch.equal(cache.rows(HOOK, torch.from_numpy(numbers)), expected)
    assert torch.equal(cache.rows(HOOK, numbers.tolist()), expected)
    assert torch.equal(cache.rows(HOOK, [-1]), whole[-1:])
    assert cache.rows(HOOK, []).shape == (0, 24)
    with pytest.raises(IndexError, match="rows"):
        cache.rows(HOOK, [len(cache)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(cache: ActivationCache, dtype: torch.dtype) -> None:
    for kind in ("unit", "none"):
        expected = cache.rows(HOOK, [3, 1, 2], normalization=kind).to(dtype)
        assert torch.equal(cache.rows(HOOK, [3, 1, 2], normalization=kind, dtype=dtype), expected)
        batch = next(cache.batches(HOOK, 8, normalization=kind, dtype=dtype))
        assert batch.dtype == dtype
        assert torch.equal(batch, cache.rows(HOOK, np.arange(8), normalization=kind).to(dtype))


def test_batches_that_are_kept_are_not_overwritten(cache: ActivationCache) -> None:
    kept = list(cache.batches(HOOK, 32))
    views = [batch[1:3] for batch in cache.batches(HOOK, 32)]
    gc.collect()
    for _ in cache.batches(HOOK, 32, epoch=1):
        pass
    for number, batch in enumerate(kept):
        expected = cache.rows(HOOK, np.arange(32 * number, 32 * number + len(batch)))
        assert torch.equal(batch, expected)
        assert torch.equal(views[number], expected[1:3])


def test_locate(cache: ActivationCache, source: Any) -> None:
    for split in ("train", "heldout"):
        sequence, position, document = cache.locate(np.arange(cache.num_rows(split)), split)
        assert source.keep[sequence, position].all()
        assert np.array_equal(document, source.documents[sequence, position])
        assert np.array_equal(
            cache.tokens[sequence][np.arange(len(sequence)), position], source.ids[sequence, position]
        )
    assert np.array_equal(cache.tokens[3], source.ids[3])
    assert np.array_equal(cache.documents[2:9:3], source.documents[2:9:3])


def test_splits_share_no_document_and_hold_every_row(cache: ActivationCache, source: Any) -> None:
    train, heldout = (
        set(cache.locate(np.arange(cache.num_rows(s)), s)[2].tolist()) for s in ("train", "heldout")
    )
    assert train and heldout and not train & heldout
    tokens = np.concatenate([cache.token_index("train")[:], cache.token_index("heldout")[:]])
    assert np.array_equal(np.sort(tokens), np.flatnonzero(source.keep))


def test_stored_order_is_that_of_the_keys(cache: ActivationCache) -> None:
    from saecache.store import row_keys

    keys = row_keys(0, cache.token_index()[:])
    assert (keys[1:] > keys[:-1]).all()


def test_rows_from_elsewhere(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    storage = StorageConfig(chunk_rows=16, shard_bytes=4096)
    with CacheWriter(
        tmp_path / "c", hooks={"image": 8}, identity={}, heldout_fraction=0.1, storage=storage
    ) as writer:
        for start in range(0, 200, 30):
            writer.write_rows({"image": rows[start : start + 30]})
    cache = open_cache(tmp_path / "c")
    sequence, position, document = cache.locate(np.arange(len(cache)))
    assert not position.any() and np.array_equal(sequence, document)
    got = cache.rows("image", np.arange(len(cache)), normalization="none").numpy()
    assert np.abs(got - rows[sequence]).max() < 5e-3
    with pytest.raises(UsageError, match="no token ids"):
        _ = cache.tokens
    with pytest.raises(UsageError, match="no documents"):
        _ = cache.documents


def test_rows_from_elsewhere_with_documents(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
    documents = np.arange(90) // 9
    storage = StorageConfig(chunk_rows=16, shard_bytes=4096)
    with CacheWriter(
        tmp_path / "c", hooks={"h": 8}, identity={}, heldout_fraction=0.4, storage=storage
    ) as writer:
        writer.write_rows({"h": rows}, documents)
    cache = open_cache(tmp_path / "c")
    for split in ("train", "heldout"):
        sequence, _, document = cache.locate(np.arange(cache.num_rows(split)), split)
        assert np.array_equal(document, documents[sequence])


def test_another_process_opens_it_for_itself(cache: ActivationCache) -> None:
    again = pickle.loads(pickle.dumps(cache))
    assert again.fingerprint == cache.fingerprint
    assert torch.equal(again.rows(HOOK, [1, 2]), cache.rows(HOOK, [1, 2]))


def test_several_readers_at_once(cache_path: Path) -> None:
    cache = open_cache(cache_path)
    expected = {epoch: all_of(cache, HOOK, 50, epoch=epoch) for epoch in range(3)}
    cache = open_cache(cache_path)  # nothing checked yet
    wrong: list[int] = []

    def read(epoch: int) -> None:
        for _ in range(3):
            if not torch.equal(all_of(cache, HOOK, 50, epoch=epoch), expected[epoch]):
                wrong.append(epoch)

    threads = [threading.Thread(target=read, args=(number % 3,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_abandoned_iterator_stops_its_threads(cache: ActivationCache) -> None:
    before = threading.active_count()
    batches = cache.batches(HOOK, 4)
    next(batches)
    assert threading.active_count() > before
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_damaged_chunk_is_named_and_never_handed_out(
    tmp_path: Path, source: Any, write_cache: Callable[..., Any]
) -> None:
    manifest = write_cache(tmp_path / "c", source)
    file = next(f for f in manifest.files if f.path.startswith(f"rows/{HOOK}/activations/c/1"))
    path = tmp_path / "c" / file.path
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    cache = open_cache(tmp_path / "c")
    first_of_shard = manifest.cut.shard_rows
    for epoch in (0, 1):
        handed_out = []
        with pytest.raises(CorruptCacheError, match=r"activations/c/1/0: chunk 0 does not match"):
            for batch in cache.batches(HOOK, 16, epoch=epoch):
                handed_out.append(batch)
        if epoch == 0:
            assert len(handed_out) == first_of_shard // 16
    with pytest.raises(CorruptCacheError, match="chunk 0"):
        cache.rows(HOOK, [first_of_shard])
    assert cache.rows(HOOK, [0]).shape == (1, 24)


def test_truncated_and_missing_shards_are_named_on_opening(
    tmp_path: Path, source: Any, write_cache: Callable[..., Any]
) -> None:
    manifest = write_cache(tmp_path / "c", source)
    path = tmp_path / "c" / manifest.files[5].path
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(CorruptCacheError, match=manifest.files[5].path):
        open_cache(tmp_path / "c")
    path.unlink()
    with pytest.raises(CorruptCacheError, match=rf"{manifest.files[5].path} is missing"):
        open_cache(tmp_path / "c")


def test_bad_requests(cache: ActivationCache) -> None:
    with pytest.raises(UsageError, match=r"no hook 'resid_post.2' \(did you mean 'resid_post.1'.*mlp_out.0"):
        cache.batches("resid_post.2")
    with pytest.raises(UsageError, match="no split 'test'"):
        cache.rows(HOOK, [0], split="test")
    with pytest.raises(UsageError, match=r"no normalization 'units'.*'unit'"):
        cache.batches(HOOK, 4, normalization="units")
    with pytest.raises(UsageError, match=f"1 to the {len(cache)} rows of split 'train'"):
        cache.batches(HOOK, len(cache) + 1)
    with pytest.raises(UsageError, match="rows_per_batch"):
        cache.batches(HOOK, 0)
    with pytest.raises(UsageError, match="that are not sinks"):
        cache.batches(HOOK, len(cache), sink_ratio=1.0)
    with pytest.raises(UsageError, match="num_rows"):
        cache.batches(HOOK, 4, num_rows=len(cache) + 1)
    with pytest.raises(UsageError, match="count from 0"):
        cache.batches(HOOK, 4, epoch=-1)
    with pytest.raises(UsageError, match="sink_ratio must be positive"):
        cache.batches(HOOK, 4, sink_ratio=-1.0)
    with pytest.raises(UsageError, match="needs the hook"):
        cache.num_batches(4, sink_ratio=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dtype": torch.int32},
            "dtype: expected a floating point type such as torch.float32, got torch.int32",
        ),
        ({"dtype": "float32"}, "dtype: expected a floating point type such as torch.float32, got 'float32'"),
        ({"rows_per_batch": 8.0}, "rows_per_batch: expected a whole number, got 8.0"),
        ({"rows_per_batch": "8"}, "rows_per_batch: expected a whole number, got '8'"),
        ({"rows_per_batch": True}, "rows_per_batch: expected a whole number, got True"),
        ({"seed": 0.5}, "seed: expected a whole number, got 0.5"),
        ({"epoch": None}, "epoch: expected a whole number, got None"),
        ({"start_batch": 1.5}, "start_batch: expected a whole number, got 1.5"),
        ({"num_rows": "all"}, "num_rows: expected a whole number, got 'all'"),
        ({"sink_ratio": "10"}, "sink_ratio: expected a number, got '10'"),
        ({"split": None}, "no split None; expected one of train, heldout"),
        ({"normalization": 3}, "no normalization 3; expected one of unit"),
        ({"device": "cuad"}, "device='cuad' cannot be used here"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(
    cache: ActivationCache, settings: dict[str, Any], message: str
) -> None:
    """An integer type used to give batches of zeros."""
    with pytest.raises(UsageError, match=re.escape(message)):
        cache.batches(HOOK, **({"rows_per_batch": 8} | settings))
    if settings.keys() & {"dtype", "split", "normalization"}:
        with pytest.raises(UsageError, match=re.escape(message)):
            cache.rows(HOOK, [0, 1], **settings)
    if settings.keys() & {"rows_per_batch", "num_rows", "split"}:
        with pytest.raises(UsageError, match=re.escape(message)):
            cache.num_batches(**settings)


def test_hooks_and_row_numbers_of_a_wrong_kind_are_refused(cache: ActivationCache) -> None:
    with pytest.raises(UsageError, match="no hook 3; expected one of"):
        cache.batches(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no hook \['resid_post.1'\]"):
        cache.rows([HOOK], [0])  # type: ignore[arg-type]
    for numbers in ([0.5], "3", [True, False], torch.tensor([0.0])):
        with pytest.raises(TypeError, match="rows are addressed by"):
            cache.rows(HOOK, numbers)
        with pytest.raises(TypeError, match="rows are addressed by"):
            cache.locate(numbers)
    with pytest.raises(UsageError, match="rows_per_batch: expected at least 1, got 0"):
        cache.num_batches(0)


def test_rows_by_slice_and_by_mask(cache: ActivationCache) -> None:
    """As numpy and torch index their arrays."""
    whole = cache.rows(HOOK, range(cache.num_rows()))
    for chosen in (slice(3, 20, 4), slice(None, None, -1), slice(5, 5), whole[:, 0] > 0):
        numbers = np.arange(len(whole))[chosen]
        assert torch.equal(cache.rows(HOOK, chosen), cache.rows(HOOK, numbers))
        assert all(len(found) == len(numbers) for found in cache.locate(chosen))
    assert torch.equal(cache.rows(HOOK, slice(3, 20, 4)), whole[3:20:4])
    assert torch.equal(cache.rows(HOOK, whole[:, 0] > 0), whole[whole[:, 0] > 0])
    with pytest.raises(TypeError, match=rf"a bool for each of the {len(whole)} rows; got bool \[2\]"):
        cache.rows(HOOK, [True, False])


def test_numbers_of_numpy_are_whole_numbers(cache: ActivationCache) -> None:
    settings = {"seed": np.int64(2**40), "epoch": np.int32(1), "start_batch": np.uint8(1)}
    got = cache.batches(HOOK, np.int64(8), **settings)  # type: ignore[arg-type]
    expected = cache.batches(HOOK, 8, seed=2**40, epoch=1, start_batch=1)
    assert torch.equal(next(got), next(expected))


def test_an_empty_heldout_split(tmp_path: Path, source: Any, write_cache: Callable[..., Any]) -> None:
    write_cache(tmp_path / "c", source, heldout_fraction=0.0)
    cache = open_cache(tmp_path / "c")
    assert cache.num_rows("heldout") == 0
    assert cache.num_batches(split="heldout") == 0
    assert len(cache) == source.keep.sum()
    with pytest.raises(UsageError, match="0 rows of split 'heldout'"):
        cache.batches(HOOK, 4, split="heldout")


def test_python_ends_quietly_with_an_unfinished_iterator(cache_path: Path) -> None:
    script = """
import sys, saecache
batches = saecache.open_cache(sys.argv[1]).batches(sys.argv[2], rows_per_batch=8)
next(batches)
"""
    command = [sys.executable, "-c", script, str(cache_path), HOOK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
