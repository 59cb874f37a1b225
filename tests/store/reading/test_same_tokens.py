"""Caches of the same tokens, read together: row r is the same token in all, and what is not is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.store import CacheWriter, StorageConfig, open_cache
from saecache.store.reading.reader import ActivationCache

CONTEXT, WIDTH, SEQUENCES = 16, 8, 120
STORAGE = StorageConfig(chunk_rows=32, shard_bytes=4096)


def write(path: Path, model: int = 0, **changes: Any) -> ActivationCache:
    """The same text under a model that is drawn from ``model``; ``changes`` replace what a cache is made of.

    The raw row of a token is a multiple of its place in the text plus a direction of the model.
    """
    ids = np.random.default_rng(changes.pop("text", 5)).integers(0, 50, (SEQUENCES, CONTEXT)).astype(np.int32)
    documents = np.repeat(np.arange(SEQUENCES // 2), 2 * CONTEXT).reshape(ids.shape).astype(np.int32)
    keep = np.ones(ids.shape, dtype=bool)
    if (dropped := changes.pop("dropped", None)) is not None:
        keep.reshape(-1)[dropped] = False
    width = changes.pop("width", WIDTH)
    place = torch.arange(ids.size, dtype=torch.float32)[torch.from_numpy(keep.reshape(-1))]
    rows = place[:, None] * torch.ones(width) + 100 * torch.randn(width, generator=_seeded(model))
    rows[changes.pop("sinks", slice(0, 0))] *= 1000
    settings: dict[str, Any] = {"seed": 3, "heldout_fraction": 0.2, "storage": STORAGE, **changes}
    identity = {"model": {"name": f"m{model}"}, "selection": settings.pop("selection", {})}
    with CacheWriter(
        path, hooks={"resid_post.3": width}, context=CONTEXT, identity=identity, **settings
    ) as writer:
        writer.write_sequences(ids=ids, documents=documents, keep=keep, activations={"resid_post.3": rows})
    return open_cache(path)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def both(tmp_path: Path, **changes: Any) -> ActivationCache:
    return write(tmp_path / "base").with_beside({"tuned": write(tmp_path / "tuned", 1, **changes)})


@pytest.mark.parametrize("epoch", [0, 2])
def test_rows_are_of_the_same_tokens(tmp_path: Path, epoch: int) -> None:
    cache = both(tmp_path, storage=STORAGE.model_copy(update={"dtype": "float32"}))
    assert cache.hooks == ["resid_post.3", "tuned:resid_post.3"] and cache.d_model(cache.hooks[1]) == WIDTH
    shift = 100 * (torch.randn(WIDTH, generator=_seeded(1)) - torch.randn(WIDTH, generator=_seeded(0)))
    streams = [cache.batches(hook, 50, 7, epoch, normalization="none") for hook in cache.hooks]
    for x, y in zip(*streams, strict=True):
        torch.testing.assert_close(y - x, shift.expand_as(x), atol=2.0, rtol=0)
    alone = open_cache(tmp_path / "tuned")
    numbers = np.arange(0, len(cache), 9)
    for kind in ("none", "unit", "scale", None):
        rows = cache.rows("tuned:resid_post.3", numbers, normalization=kind)
        assert torch.equal(rows, alone.rows("resid_post.3", numbers, normalization=kind))
    assert cache.normalizer("tuned:resid_post.3", "scale") == alone.normalizer("resid_post.3", "scale")
    found, wanted = cache.statistics("tuned:resid_post.3"), alone.statistics("resid_post.3")
    assert np.array_equal(found.mean, wanted.mean) and found.norm_quantiles == wanted.norm_quantiles
    assert not np.array_equal(found.mean, cache.statistics("resid_post.3").mean)


def test_fewer_rows_another_process_and_the_fingerprint(tmp_path: Path) -> None:
    cache = both(tmp_path)
    alone = [open_cache(tmp_path / name).fingerprint for name in ("base", "tuned")]
    again = open_cache(tmp_path / "base", beside={"tuned": tmp_path / "tuned"})
    assert cache.fingerprint == again.fingerprint not in alone
    other_name = open_cache(tmp_path / "base", beside={"chat": tmp_path / "tuned"})
    assert other_name.fingerprint != cache.fingerprint
    head = pickle.loads(pickle.dumps(cache.head(100)))  # our own bytes
    assert len(head) == 100 and head.hooks == cache.hooks and head.fingerprint == cache.fingerprint
    for hook in cache.hooks:
        assert torch.equal(next(head.batches(hook, 100)), next(cache.batches(hook, 100)))
    assert cache.with_beside({"tuned": tmp_path / "tuned"}) is cache


def test_a_sink_at_one_hook_is_left_out_of_all(tmp_path: Path) -> None:
    cache = both(tmp_path, sinks=slice(0, None, 40))
    base, tuned = cache.hooks
    per_hook = [cache.num_batches(1, hook=hook, sink_ratio=20) for hook in cache.hooks]
    assert per_hook[0] == len(cache) > per_hook[1]
    assert cache.num_batches(1, sink_ratio=20, sink_hooks=cache.hooks) == per_hook[1]
    x, y = (
        torch.cat(list(cache.batches(hook, 64, 1, 1, "train", "none", sink_ratio=20, sink_hooks=cache.hooks)))
        for hook in cache.hooks
    )
    assert len(x) == len(y) == per_hook[1] and float(y.norm(dim=1).max()) < 100_000
    order = x.mean(1).argsort()  # the place in the text decides the size of both
    assert bool((y[order].mean(1).diff() > -20).all()), "row by row the same token"
    whole = torch.cat(list(cache.batches(base, 64, 1, 1, normalization="none", sink_ratio=20)))
    assert len(whole) == len(cache)
    assert len(list(cache.batches(tuned, 1, sink_ratio=20))) == per_hook[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": 6}, r"tokens/ids: other content.*Harvest it again .* change model.name alone"),
        ({"seed": 4}, r"rows/token: other content|training rows.*seed: 3 there, 4 here"),
        ({"heldout_fraction": 0.4}, r"training rows: \d+ there, \d+ here.*heldout_fraction: 0.2 there, 0.4"),
        (
            {"storage": StorageConfig(chunk_rows=64, shard_bytes=4096)},
            r"chunk_rows: 32 there, 64 here",
        ),
        (
            {"dropped": [3, 50], "selection": {"sink_ratio": 10.0}},
            r"training rows: .*harvest both with selection.sink_ratio=null, and set sink_ratio of the",
        ),
    ],
)
def test_other_tokens_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s)cannot be read beside.*base.*{message}"):
        both(tmp_path, **changes)


def test_the_same_rows_of_other_settings_may_be_read(tmp_path: Path) -> None:
    """What is stored decides, not the settings; and the files may be cut elsewhere."""
    cache = both(tmp_path, selection={"sink_ratio": 1e9})
    wide = write(tmp_path / "wide", 2, width=64)
    assert wide.manifest.cut.shard_rows < cache.manifest.cut.shard_rows
    three = cache.with_beside({"wide": wide})
    assert three.d_model("wide:resid_post.3") == 64
    tuned, wide_rows = (
        torch.cat(list(three.batches(hook, 50, 1, 2, normalization="none"))) for hook in three.hooks[1:]
    )
    order = tuned.mean(1).argsort()
    assert bool((wide_rows[order].mean(1).diff() > -20).all()), "row by row the same token"
    other = write(tmp_path / "other", 2, width=64, text=6)
    with pytest.raises(UsageError, match="tokens/ids: other content"):
        cache.with_beside({"other": other})
    reordered = write(tmp_path / "reordered", 2, width=64, seed=4, heldout_fraction=0)
    base = write(tmp_path / "whole", heldout_fraction=0)
    with pytest.raises(UsageError, match=r"rows/token: other content(?s:.*)seed: 3 there, 4 here"):
        base.with_beside({"reordered": reordered})


def test_rows_without_text_need_the_same_identity(tmp_path: Path) -> None:
    def made(name: str, source: str, model: str) -> ActivationCache:
        identity = {"source": source, "model": {"name": model}}
        with CacheWriter(tmp_path / name, hooks={"x": 4}, identity=identity) as writer:
            writer.write_rows({"x": torch.randn(40, 4, generator=_seeded(len(model)))})
        return open_cache(tmp_path / name)

    base = made("a", "images", "base")
    assert base.with_beside({"tuned": made("b", "images", "tuned one")}).hooks == ["x", "tuned:x"]
    with pytest.raises(UsageError, match="source: 'images' there, 'sounds' here"):
        base.with_beside({"tuned": made("c", "sounds", "tuned one")})


def test_names(tmp_path: Path) -> None:
    cache = both(tmp_path)
    with pytest.raises(UsageError, match="two caches are called tuned"):
        cache.with_beside({"tuned": tmp_path / "base"})
    with pytest.raises(UsageError, match="as the name of a cache, got 'a:b'"):
        cache.with_beside({"a:b": tmp_path / "base"})
    with pytest.raises(UsageError, match=r"name them beside .*base too"):
        open_cache(tmp_path / "base").with_beside({"more": cache})
    with pytest.raises(UsageError, match="expected one of"):
        cache.rows("other:resid_post.3", [0])
