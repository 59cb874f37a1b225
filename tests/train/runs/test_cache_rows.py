"""A run on the first rows of a cache, or on a compressed cache, equals a run on a cache of these rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saecache.store import UsageError, convert_cache, open_cache
from saecache.store.derived.slicing import slice_cache
from saecache.store.encoding.codecs import BloscCodec, ZstdCodec
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig, load_sae, run

TOPK = {"kind": "topk", "k": 4}


def test_a_run_on_the_first_rows_is_a_run_on_a_slice(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    settings = {"steps": None, "epochs": 3, "batch_rows": 128}
    (name, some), *_ = run(make_config(TOPK, cache_rows=600, **settings), cache, tmp_path / "a").saes.items()
    slice_cache(cache, tmp_path / "slice", rows=600)
    small = run(make_config(TOPK, **settings), open_cache(tmp_path / "slice"), tmp_path / "b")
    every = run(make_config(TOPK, **settings), cache, tmp_path / "c")
    weights = [load_sae(folder).state_dict() for folder in (some, small.saes[name], every.saes[name])]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["W_enc"], weights[2]["W_enc"])


@pytest.mark.parametrize("codec", [ZstdCodec(), BloscCodec(level=1)])
def test_a_compressed_cache_trains_the_same_sae(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    codec: ZstdCodec | BloscCodec,
) -> None:
    convert_cache(cache, tmp_path / "small", codec=codec)
    config = make_config(TOPK, steps=None, epochs=3)
    plain = run(config, cache, tmp_path / "a")
    small = run(config, open_cache(tmp_path / "small"), tmp_path / "b")
    for name, folder in plain.saes.items():
        weights = (folder / "weights.safetensors").read_bytes()
        assert weights == (small.saes[name] / "weights.safetensors").read_bytes()


def test_more_rows_than_there_are(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"training rows of .*, got 99999"):
        run(make_config(TOPK, cache_rows=99999), cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()
