"""The training loop: it reads every batch once and trains each variant on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import torch

from ..runs.config import TrainConfig
from .metrics import reset
from .reading import BatchRows, Inputs, centered
from .schedule import learning_rate_factor
from .side_by_side import run_each_variant
from .trainee import DivergedError, Trainee


@dataclass(frozen=True, kw_only=True)
class Events:
    """Callbacks of the training loop. They get the number of finished steps and the running trainees."""

    log: Callable[[int, Sequence[Trainee], "Clock"], None]
    save: Callable[[int, Sequence[Trainee]], None]
    failed: Callable[[int, int, Trainee, DivergedError], None]  # gets the 0-based step and batch of the run
    stop_asked: Callable[[], bool]  # and the next one: alike in all processes of a run
    # Whether a variant still trains, here or in another process; alone: whether any is left.
    any_running: Callable[[Sequence[Trainee]], bool] = bool


@dataclass
class Clock:
    """The duration of an interval of steps, and how much of it was spent waiting for batches."""

    started: float = field(default_factory=perf_counter)
    waiting: float = 0.0  # seconds spent waiting for batches
    steps: int = 0

    def next_batch(self, stream: Iterator[BatchRows]) -> BatchRows | None:
        """The next batch of ``stream``, or None at its end; adds the time it took to ``waiting``."""
        before = perf_counter()
        batch = next(stream, None)
        self.waiting += perf_counter() - before
        return batch

    @property
    def elapsed(self) -> float:
        """Seconds since the interval started."""
        return perf_counter() - self.started


@torch.no_grad()
def train(
    config: TrainConfig,
    trainees: Sequence[Trainee],
    stream: Iterator[BatchRows],
    inputs: Inputs,
    first_step: int,
    num_steps: int,
    events: Events,
) -> bool:
    """Run the 0-based steps ``first_step`` to ``num_steps - 1``; False if stopped before the end."""
    running, clock = list(trainees), Clock()
    for step in range(first_step, num_steps):
        rate_factor = learning_rate_factor(config.schedule, step, num_steps)
        for number in range(config.accumulate_batches):
            rows = clock.next_batch(stream)
            assert rows is not None, "the feed yields exactly the planned batches"
            inputs.add(rows)
            work = partial(
                train_on_batch, rows=rows, step=step, number=number, rate_factor=rate_factor, config=config
            )
            drop_diverged(running, run_each_variant(running, work, rows), config, events)
        clock.steps += 1
        done = step + 1
        stopping = events.stop_asked() and done < num_steps
        logging = done % config.log.every_steps == 0 or done == num_steps
        saving = done % config.checkpoint.every_steps == 0 or done == num_steps or stopping
        if logging or saving:
            drop_diverged(running, settle(running), config, events)
        if logging:
            events.log(done, running, clock)
            reset(inputs, [trainee.interval for trainee in running])
            clock = Clock()
        if saving:
            events.save(done, running)
        if stopping or not events.any_running(running):
            return not stopping
    return True


def settle(trainees: Sequence[Trainee]) -> list[tuple[Trainee, DivergedError]]:
    """Look at the last update of all ``trainees``; return those that had diverged."""
    diverged = []
    for trainee in trainees:
        try:
            trainee.settle()
        except DivergedError as error:
            diverged.append((trainee, error))
    return diverged


def drop_diverged(
    running: list[Trainee],
    failures: Sequence[tuple[Trainee, DivergedError]],
    config: TrainConfig,
    events: Events,
) -> None:
    """Report each of ``failures`` with its step and batch, and remove its trainee from ``running``."""
    for trainee, error in failures:
        running.remove(trainee)
        events.failed(error.number // config.accumulate_batches, error.number, trainee, error)


def train_on_batch(
    trainee: Trainee, rows: BatchRows, step: int, number: int, rate_factor: float, config: TrainConfig
) -> None:
    """Add the gradients of ``rows``, this process's rows of the 0-based batch ``number`` of a step.

    After the last batch the parameters are updated.
    """
    with centered(rows, trainee.reading, trainee.parameters) as (x_centered, target_centered):
        trainee.add_batch(x_centered, target_centered, step, config.dead_after_rows, number_in_step=number)
        if number == config.accumulate_batches - 1:
            trainee.update(rate_factor)
