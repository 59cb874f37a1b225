"""A harvest on a pretended device with the kernel in Triton's interpreter gives the cache of the CPU."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.errors import BadActivationError
from saecache.common.transfers import TRANSFERS
from saecache.harvest import HarvestConfig
from saecache.harvest.model import forward
from saecache.harvest.runner import run
from saecache.store import CacheWriter, open_cache
from saecache.store.encoding import device
from saecache.store.writing import staging

from ...pretend_transfers import PretendTransfers, pretend
from ..job.test_resume import digests, of_type, stopped_while_reading

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter

MakeConfig = Callable[..., HarvestConfig]
WAYS: dict[str, dict[str, Any]] = {
    "unit rows": {},
    "raw rows": {"storage": {"chunk_rows": 64, "normalization": "none", "dtype": "float32"}},
    "int8": {"storage": {"chunk_rows": 64, "dtype": "int8"}},
    "bfloat16": {"storage": {"chunk_rows": 64, "dtype": "bfloat16"}},
    "without sinks": {"selection": {"sink_ratio": 1.6}},
    "documents": {"tokens": {"context": 16, "packing": "per_document"}},
}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[PretendTransfers]]:
    """Make the CPU a device with copies of its own and a kernel."""

    def make(seconds: float = 0.0, *, encodes: bool = True) -> type[PretendTransfers]:
        kind = pretend(seconds)
        if encodes:
            monkeypatch.setattr(staging, "encode_rows", lambda *_: pytest.fail("the CPU has encoded rows"))
        monkeypatch.setitem(TRANSFERS, "cpu", kind)
        monkeypatch.setattr(device, "runs_triton", lambda _device: True)
        monkeypatch.setattr(device, "PIECE_BYTES", 4096)
        return kind

    return make


@pytest.mark.parametrize(
    ("way", "dtype"),
    [*((way, "float32") for way in WAYS), ("unit rows", "bfloat16"), ("without sinks", "bfloat16")],
)
def test_the_cache_is_that_of_the_cpu(
    make_config: MakeConfig,
    tmp_path: Path,
    pretended: Callable[..., type[PretendTransfers]],
    way: str,
    dtype: str,
) -> None:
    config = of_type(make_config(**{"num_tokens": 1200, "batch_size": 32, **WAYS[way]}), dtype)
    plain = run(config, tmp_path / "plain")
    kind = pretended(0.001)
    there = run(config, tmp_path / "there")
    assert digests(Path(there.path)) == digests(Path(plain.path))
    conditions = [open_cache(Path(r.path)).provenance["conditions"] for r in (plain, there)]
    assert [each.pop("encoder") for each in conditions] == ["cpu", "gpu"]
    assert conditions[0] == conditions[1]
    threads = {name for made in kind.made for name in made.beside_threads}
    assert threads and all(name.startswith("harvest-write") for name in threads)
    assert sum(made.bytes for made in kind.made) > 1000 * 2 * 32, "records came over"


def test_stopped_and_continued(
    make_config: MakeConfig, tmp_path: Path, pretended: Callable[..., type[PretendTransfers]]
) -> None:
    config = make_config(num_tokens=1200, batch_size=32)
    pretended(0.001)
    whole = run(config, tmp_path / "whole")
    stopped_while_reading(config, tmp_path / "stopped")
    assert digests(Path(run(config, tmp_path / "stopped").path)) == digests(Path(whole.path))


def test_a_device_whose_bytes_are_others_does_not_encode(
    make_config: MakeConfig,
    tmp_path: Path,
    pretended: Callable[..., type[PretendTransfers]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from saecache.store.encoding import triton_encode

    config = make_config(num_tokens=500)
    plain = run(config, tmp_path / "plain")
    pretended(encodes=False)
    honest = triton_encode.encode_on_device

    def wrong(x: torch.Tensor, records: torch.Tensor, *arguments: Any) -> None:
        honest(x, records, *arguments)
        records[50, 3] ^= 1

    monkeypatch.setattr(triton_encode, "encode_on_device", wrong)
    device.encodes_as_here.cache_clear()
    there = run(config, tmp_path / "there")
    device.encodes_as_here.cache_clear()
    assert digests(Path(there.path)) == digests(Path(plain.path))
    assert open_cache(Path(there.path)).provenance["conditions"]["encoder"] == "cpu"
    assert "does not encode rows" in caplog.text


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "1 NaN and 0 Inf"), (np.inf, "0 NaN and 1 Inf")])
def test_a_row_that_cannot_be_stored_is_named(
    tmp_path: Path, pretended: Callable[..., type[PretendTransfers]], value: float, reason: str
) -> None:
    pretended()
    x = torch.randn(300, 32)
    x[217, 5] = value
    hooks = {"a": 32, "b": 16}
    with (
        closing(CacheWriter(tmp_path / "cache", hooks=hooks, identity={})) as writer,
        pytest.raises(BadActivationError, match=rf"hook a, document 217, .*{reason} among 32 values"),
    ):
        writer.write_rows({"a": x, "b": torch.randn(300, 16)})


def test_large_blocks_of_ids_follow_small_ones(pretended: Callable[..., type[PretendTransfers]]) -> None:
    sent = forward._SentBlocks(pretended(0.002)(torch.device("cpu")))
    for number, (n, context) in enumerate([(2, 3), (5, 7), (5, 7), (1, 2), (5, 7)]):
        ids = np.full((n, context), number, np.int32)
        chosen = np.arange(min(number + 1, ids.size))
        with sent.sent(ids, chosen) as (ids_there, chosen_there):
            assert np.array_equal(ids_there.numpy(), ids) and np.array_equal(chosen_there.numpy(), chosen)
