"""The batches of a run, in order, from any step on: a pure function of (seed, step)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...store.reading.reader import ActivationCache
from ..runs.config import TrainConfig

PIECE_BYTES = 64 * 2**20  # batches alternate between pieces of memory: large ones are read in such parts


def usable_rows(config: TrainConfig, cache: ActivationCache, hook: str) -> int:
    """Training rows that are not left out as attention sinks."""
    return cache.num_batches(1, hook=hook, sink_ratio=config.sink_ratio)


def num_steps(config: TrainConfig, cache_rows: int) -> int:
    """Steps of the run over ``cache_rows``: whole batches only, and every epoch starts with a new batch."""
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
) -> Iterator[Tensor]:
    """Batches [R, D], float32, of steps ``first_step`` to ``last_step``, over as many epochs as they take.

    Every batch is full: rows left out as sinks make the epoch shorter, not the batch.

    Large batches share one tensor: each is overwritten by the next.
    """
    per_epoch = usable_rows(config, cache, hook) // config.batch_rows
    piece_rows = rows_of_a_piece(config.batch_rows, cache.d_model(hook))
    pieces = config.batch_rows // piece_rows
    number, last = first_step * config.accumulate_batches, last_step * config.accumulate_batches
    while number < last:
        epoch, start = divmod(number, per_epoch)
        stream = cache.batches(
            hook,
            piece_rows,
            config.seed,
            epoch,
            normalization=config.normalization,
            start_batch=start * pieces,
            drop_last=True,
            device=device,
            sink_ratio=config.sink_ratio,
        )
        for x in stream if pieces == 1 else joined(stream, pieces):
            yield x
            number += 1
            if number == last:
                return


def rows_of_a_piece(batch_rows: int, d_model: int) -> int:
    """The largest divisor of ``batch_rows`` whose rows fit :data:`PIECE_BYTES`; all rows if only 1 would."""
    fitting = PIECE_BYTES // (4 * d_model)
    divisors = (batch_rows // pieces for pieces in range(1, batch_rows) if batch_rows % pieces == 0)
    return next((rows for rows in divisors if rows <= fitting), batch_rows)


def joined(stream: Iterator[Tensor], pieces: int) -> Iterator[Tensor]:
    """``pieces`` consecutive pieces [r, D] at a time, in one tensor [pieces * r, D] that is used again.

    Pieces left over at the end are no batch.
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
