"""What one process hands out: whole blocks, once each, in rounds."""

from collections.abc import Iterator

import numpy as np
import pytest

from saecache.distributed.group import ALONE, Group
from saecache.harvest.config import SelectionConfig
from saecache.harvest.job.feed import Feed, Share
from saecache.harvest.job.stream import TokenBatch
from saecache.harvest.text.packing import Cursor, Sequences

CONTEXT = 8


class Commits:
    """Wants a commit after every second round."""

    asked = 0

    def commit_due(self) -> bool:
        self.asked += 1
        return self.asked % 2 == 0

    def take_mark(self) -> None:
        return None


def make_feed(group: Group = ALONE, *, block: int = 3, step: int = 6, stop_after: int = 100) -> Feed:
    answers = iter([False] * stop_after + [True])
    return Feed(
        group,
        first=30,
        context=CONTEXT,
        block=block,
        step=step,
        selection=SelectionConfig(),
        stop_asked=lambda: next(answers),
    )


def rounds_of(*sizes: int) -> Iterator[TokenBatch]:
    for size in sizes:
        ids = np.arange(size * CONTEXT, dtype=np.int32).reshape(size, CONTEXT)
        sequences = Sequences(ids, ids, ids.astype(np.uint8), [Cursor()] * size)
        yield TokenBatch(sequences, np.ones_like(ids, dtype=np.bool_))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_every_process_gets_whole_blocks(size: int) -> None:
    feed = make_feed(Group(ranks=tuple(range(size))))
    for sequences in range(1, 60):
        bounds = feed._bounds(sequences)
        shares = np.diff(bounds)
        assert bounds[0] == 0 and bounds[-1] == sequences and (shares >= 0).all()
        assert all(bound % 3 == 0 for bound in bounds[:-1] if bound < sequences)
        blocks = -(-shares // 3)
        assert blocks.max() - blocks.min() <= 1


def test_a_process_alone_gets_every_step_at_once() -> None:
    feed = make_feed()
    shares = list(feed.shares(rounds_of(6, 6, 4), Commits()))
    assert feed.round_sequences == 6
    assert [share.first for share in shares] == [30, 36, 42]
    assert [share.commit for share in shares] == [False, True, False]
    for share in shares:
        assert share.batch is not None and share.counted is not None
        assert np.array_equal(share.batch.sequences.ids, share.counted.sequences.ids)
    assert not feed.stopped


def test_a_round_of_several_steps_is_counted_and_committed_at_its_end() -> None:
    shares: list[Share] = list(make_feed(step=3).shares(rounds_of(9, 9), Commits()))
    assert [share.first for share in shares] == [30, 33, 36, 39, 42, 45]
    assert [share.counted is not None for share in shares] == [False, False, True] * 2
    assert [share.commit for share in shares] == [False] * 5 + [True]


def test_a_stop_comes_between_rounds() -> None:
    feed = make_feed(stop_after=2)
    assert len(list(feed.shares(rounds_of(6, 6, 6), Commits()))) == 2
    assert feed.stopped


def test_a_failure_that_others_know_is_not_said_again() -> None:
    def broken() -> Iterator[TokenBatch]:
        yield from rounds_of(6)
        raise LookupError("no text")

    feed = make_feed()
    with pytest.raises(LookupError):
        list(feed.shares(broken(), Commits()))
    feed.say_failed(LookupError("no text"))
    with pytest.raises(LookupError, match="another"):
        make_feed().say_failed(LookupError("another"))
