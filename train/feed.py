"""The batches of a run, in order, from any step on: a pure function of (seed, step)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..store.reader import ActivationCache
from .config import TrainConfig


def num_steps(config: TrainConfig, cache_rows: int) -> int:
    """Steps of the run: whole batches only, and every epoch starts with a new batch."""
    per_epoch = cache_rows // config.batch_rows
    if config.steps is not None:
        return config.steps
    if config.num_rows is not None:
        return config.num_rows // config.batch_rows
    assert config.epochs is not None, "the config gives one of the three"
    return round(config.epochs * per_epoch)


def batches(
    config: TrainConfig,
    cache: ActivationCache,
    hook: str,
    device: torch.device,
    first_step: int,
    last_step: int,
) -> Iterator[Tensor]:
    """Batches [R, D], float32, of steps ``first_step`` to ``last_step``, over as many epochs as they take."""
    per_epoch = len(cache) // config.batch_rows
    step = first_step
    while step < last_step:
        epoch, start = divmod(step, per_epoch)
        stream = cache.batches(
            hook,
            config.batch_rows,
            config.seed,
            epoch,
            normalization=config.normalization,
            start_batch=start,
            drop_last=True,
            device=device,
        )
        for x in stream:
            yield x
            step += 1
            if step == last_step:
                return
