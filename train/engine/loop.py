"""The training loop: every batch is read once, and each variant takes a step on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from ...common.fvu import RowVariance
from ..backends.scratch import borrowed
from ..runs.config import TrainConfig
from .metrics import reset
from .schedule import learning_rate_factor
from .side_by_side import each_variant
from .trainee import DivergedError, Trainee


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the loop tells; the step counts finished steps, the trainees are those still running."""

    log: Callable[[int, Sequence[Trainee], "Clock"], None]
    save: Callable[[int, Sequence[Trainee]], None]
    failed: Callable[[int, int, Trainee, DivergedError], None]  # 0-based step, and batch of the run
    stop_asked: Callable[[], bool]


@dataclass
class Clock:
    """Where the time of an interval went."""

    started: float = field(default_factory=perf_counter)
    waiting: float = 0.0  # seconds without a batch
    steps: int = 0

    def waited_for(self, stream: Iterator[Tensor]) -> Tensor | None:
        """The next batch, its waiting time added; None at the end."""
        before = perf_counter()
        batch = next(stream, None)
        self.waiting += perf_counter() - before
        return batch

    @property
    def elapsed(self) -> float:
        return perf_counter() - self.started


@torch.no_grad()
def train(
    config: TrainConfig,
    trainees: Sequence[Trainee],
    stream: Iterator[Tensor],
    inputs: RowVariance,
    first_step: int,
    num_steps: int,
    events: Events,
) -> bool:
    """Run steps ``first_step`` to ``num_steps`` (0-based). False when it was asked to stop before the end."""
    running, clock = list(trainees), Clock()
    for step in range(first_step, num_steps):
        rate_factor = learning_rate_factor(config.schedule, step, num_steps)
        for number in range(config.accumulate_batches):
            x = clock.waited_for(stream)
            assert x is not None, "the feed yields exactly the planned batches"
            inputs.add(x)
            work = partial(one_batch, x=x, step=step, number=number, rate_factor=rate_factor, config=config)
            for trainee, error in each_variant(running, work, x):
                running.remove(trainee)
                events.failed(step, step * config.accumulate_batches + number, trainee, error)
        clock.steps += 1
        done = step + 1
        stopping = events.stop_asked() and done < num_steps
        if done % config.log.every_steps == 0 or done == num_steps:
            events.log(done, running, clock)
            reset(inputs, [trainee.interval for trainee in running])
            clock = Clock()
        if done % config.checkpoint.every_steps == 0 or done == num_steps or stopping:
            events.save(done, running)
        if stopping or not running:
            return not stopping
    return True


def one_batch(
    trainee: Trainee, x: Tensor, step: int, number: int, rate_factor: float, config: TrainConfig
) -> None:
    """Train on one batch ``x`` [R, D], that of 0-based ``number`` in its step; the last one moves weights."""
    with borrowed(*x.shape, dtype=x.dtype, device=x.device) as x_centered:
        torch.sub(x, trainee.parameters["b_dec"], out=x_centered)
        trainee.add_batch(x_centered, x_centered, step, config.dead_after_rows, number_in_step=number)
        if number == config.accumulate_batches - 1:
            trainee.update(rate_factor)
