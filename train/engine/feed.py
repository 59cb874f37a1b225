"""The batches of a run in order, from any step on; they are a pure function of (seed, step).

On a GPU the cache's reader brings two batches there ahead of the step that uses them.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from ...store.reading.reader import ActivationCache
from ..runs.config import TrainConfig
from .reading import BatchRows, Source

PIECE_BYTES = 64 * 2**20  # the cache's reader alternates between buffers: it reads large batches in pieces
BATCHES_AHEAD = 2


def usable_rows(config: TrainConfig, cache: ActivationCache, hooks: Sequence[str]) -> int:
    """The number of training rows without those that are left out as attention sinks at any of ``hooks``."""
    return cache.num_batches(1, sink_ratio=config.sink_ratio, sink_hooks=hooks)


def num_steps(config: TrainConfig, cache_rows: int) -> int:
    """The number of steps over ``cache_rows``: all batches are whole, and each epoch starts a new one."""
    if config.steps is not None:
        return config.steps
    if config.num_rows is not None:
        return config.num_rows // (config.batch_rows * config.accumulate_batches)
    assert config.epochs is not None, "the config gives one of the three"
    return round(config.epochs * (cache_rows // config.batch_rows) / config.accumulate_batches)


def batches(
    config: TrainConfig,
    cache: ActivationCache,
    hook: str,
    device: torch.device,
    first_step: int,
    last_step: int,
    sink_hooks: Sequence[str] = (),
    own_rows: slice = slice(None),
) -> Generator[Tensor, None, None]:
    """Yield the batches, float32 [R, D], of steps ``first_step`` to ``last_step - 1``, over all their epochs.

    Only ``own_rows`` of every batch are read and yielded. Every batch is full: leaving out sinks shortens the
    epoch, not the batch. Large batches share one tensor, which the next one overwrites. A row is left out if
    it is a sink at one of ``sink_hooks``; without any, at ``hook``.
    """
    sink_hooks = sink_hooks or [hook]
    per_epoch = usable_rows(config, cache, sink_hooks) // config.batch_rows
    num_own = len(range(config.batch_rows)[own_rows])
    pieces = num_own // choose_piece_rows(num_own, cache.d_model(hook))
    number, last = first_step * config.accumulate_batches, last_step * config.accumulate_batches
    while number < last:
        epoch, start = divmod(number, per_epoch)
        stream = cache.batches(
            hook,
            config.batch_rows,
            config.seed,
            epoch,
            normalization=config.normalization,
            start_batch=start,
            drop_last=True,
            device=device,
            sink_ratio=config.sink_ratio,
            sink_hooks=sink_hooks,
            batches_ahead=BATCHES_AHEAD * pieces,
            own_rows=own_rows,
            pieces=pieces,
        )
        with closing(stream):
            for x in stream if pieces == 1 else join_pieces(stream, pieces):
                yield x
                number += 1
                if number == last:
                    return


def batches_of_sources(
    config: TrainConfig,
    cache: ActivationCache,
    sources: Sequence[Source],
    device: torch.device,
    first_step: int,
    last_step: int,
    sink_hooks: Sequence[str] = (),
    own_rows: slice = slice(None),
) -> Generator[BatchRows, None, None]:
    """Yield the :func:`batches` of several sources together: row b is the same token in all of them.

    A row is left out of all if it is a sink at one of ``sink_hooks`` (none: the hooks of ``sources``).
    """
    sink_hooks = sink_hooks or list(dict.fromkeys(source.hook for source in sources))
    with ExitStack() as open_streams:
        streams = [
            open_streams.enter_context(
                closing(
                    batches(
                        config.model_copy(update={"normalization": source.normalization}),
                        cache,
                        source.hook,
                        device,
                        first_step,
                        last_step,
                        sink_hooks,
                        own_rows,
                    )
                )
            )
            for source in sources
        ]
        for rows in zip(*streams, strict=True):
            yield dict(zip(sources, rows, strict=True))


def choose_piece_rows(batch_rows: int, d_model: int) -> int:
    """The largest divisor of ``batch_rows`` that fits into :data:`PIECE_BYTES`; all rows if only 1 does."""
    fitting = PIECE_BYTES // (4 * d_model)
    divisors = (batch_rows // pieces for pieces in range(1, batch_rows) if batch_rows % pieces == 0)
    return next((rows for rows in divisors if rows <= fitting), batch_rows)


def join_pieces(stream: Iterator[Tensor], pieces: int) -> Iterator[Tensor]:
    """Yield each ``pieces`` consecutive pieces [r, D] as a tensor [pieces * r, D], whose memory is reused.

    Pieces that are left over at the end are dropped.
    """
    whole: Tensor | None = None
    filled = 0
    for piece in stream:
        if whole is None:
            whole = piece.new_empty(pieces * piece.shape[0], piece.shape[1])
        whole[filled : filled + piece.shape[0]] = piece
        filled += piece.shape[0]
        if filled == whole.shape[0]:
            yield whole
            filled = 0
