"""The feed yields batches over several epochs, from any step on, and reads large ones in pieces."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from time import perf_counter
from typing import Any

import pytest
import torch

from saecache.common.transfers import TRANSFERS
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig
from saecache.train.engine import feed
from saecache.train.engine.feed import batches, choose_piece_rows
from saecache.train.engine.loop import Clock

from ...pretend_transfers import pretend

TOPK = {"kind": "topk", "k": 4}
CPU = torch.device("cpu")


def test_several_epochs_read_new_orders(
    cache: ActivationCache, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(TOPK, steps=None, epochs=2)
    per_epoch = len(cache) // 256
    seen = list(batches(config, cache, "resid", CPU, 0, 2 * per_epoch))
    assert len(seen) == 2 * per_epoch and {tuple(x.shape) for x in seen} == {(256, 24)}
    assert not torch.equal(seen[0], seen[per_epoch])
    late = list(batches(config, cache, "resid", CPU, per_epoch - 1, per_epoch + 2))
    assert all(torch.equal(a, b) for a, b in zip(late, seen[per_epoch - 1 : per_epoch + 2], strict=True))


@pytest.mark.parametrize("first_step", [0, 3, 12])
def test_large_batches_are_read_in_pieces(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    first_step: int,
) -> None:
    config = make_config(TOPK)
    whole = [x.clone() for x in batches(config, cache, "resid", CPU, first_step, 15)]
    monkeypatch.setattr(feed, "PIECE_BYTES", 4 * 24 * 70)  # 64 of the 256 rows
    in_pieces = [x.clone() for x in batches(config, cache, "resid", CPU, first_step, 15)]
    assert len(whole) == len(in_pieces) == 15 - first_step
    assert all(torch.equal(a, b) for a, b in zip(whole, in_pieces, strict=True))


@pytest.mark.parametrize(
    ("batch_rows", "d_model", "piece"),
    [(4096, 768, 4096), (262_144, 768, 16_384), (65_536, 4096, 4096), (99_991, 768, 99_991), (1, 10, 1)],
)
def test_pieces_divide_the_batch(batch_rows: int, d_model: int, piece: int) -> None:
    assert choose_piece_rows(batch_rows, d_model) == piece


@pytest.mark.parametrize("piece_bytes", [2**26, 4 * 24 * 70])
def test_a_device_gets_the_same_batches(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(feed, "PIECE_BYTES", piece_bytes)
    config = make_config(TOPK, sink_ratio=1.5, normalization="scale", accumulate_batches=2)
    wanted = [x.clone() for x in batches(config, cache, "resid", CPU, 2, 14)]
    kind = pretend(0.001)
    monkeypatch.setitem(TRANSFERS, "cpu", kind)
    got = [x.clone() for x in batches(config, cache, "resid", CPU, 2, 14)]
    assert len(got) == 24 and all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert len(kind.made) > 1, "several epochs"
    pieces = 256 // choose_piece_rows(256, 24)
    assert kind.made[0].pinned_bytes == (2 * pieces + 1) * (256 // pieces) * (2 * 24 + 4 + 4)
    assert not any(thread.name == "saecache-feed" for thread in threading.enumerate())


def test_a_run_that_stops_early_leaves_no_thread(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRANSFERS, "cpu", pretend(0.001))
    stream = batches(make_config(TOPK), cache, "resid", CPU, 0, 8)
    next(stream)
    assert any(thread.name == "saecache-feed" for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name == "saecache-feed" for thread in threading.enumerate())


def test_waiting_for_copies_counts_as_waiting_for_data(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRANSFERS, "cpu", pretend(0.05))
    took: list[float] = []

    def timed(stream: Iterator[Any]) -> Iterator[Any]:
        for _ in range(4):
            before = perf_counter()
            batch = next(stream)
            took.append(perf_counter() - before)
            yield batch

    clock = Clock()
    with closing(batches(make_config(TOPK), cache, "resid", CPU, 0, 8)) as stream:
        watched = timed(stream)
        for _ in range(4):
            clock.next_batch(watched)
    # Every wait counts. Only the first is sure to be whole: copies go on while this thread does not run.
    assert took[0] >= 0.05 and len(took) == 4
    assert sum(took) <= clock.waiting <= clock.elapsed
