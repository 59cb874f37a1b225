"""Train several variants on one batch side by side, one thread for each, where that is faster.

A second thread does not halve the time of a small step: threads wait for each other, and short operations
cannot be split. Steps of different variants never wait for each other. Large steps are mostly matrix
products, which split well; side by side they would evict each other's weights from the caches. No result
depends on the number of threads, so a variant ends with the same bytes whatever it is trained with.
``benchmarks/many_variants.py`` measures this.
"""

from collections.abc import Callable, Sequence
from contextvars import copy_context

import torch
from torch import Tensor

from ..backends.threads import run_parts
from .reading import BatchRows
from .trainee import DivergedError, Trainee

MOST_BYTES = 256 * 2**20  # for centered rows, of which each running variant has its own
MOST_WEIGHTS = 2**23  # of an encoder: here both ways take the same time on two cores


def run_each_variant(
    running: Sequence[Trainee], work: Callable[[Trainee], None], rows: BatchRows
) -> list[tuple[Trainee, DivergedError]]:
    """Call ``work`` for each of ``running``, given their batch ``rows``; return those that diverged."""
    diverged: dict[int, DivergedError] = {}

    def run_one(i: int) -> None:
        try:
            work(running[i])
        except DivergedError as error:
            diverged[i] = error

    # Processes exchange in one order, which side by side does not keep.
    alone = all(trainee.plan.owners.is_whole for trainee in running)
    largest = max((trainee.plan.num_latents * trainee.plan.d_encoder for trainee in running), default=0)
    largest_rows = max(rows.values(), key=Tensor.numel)
    together = num_side_by_side(len(running), largest, largest_rows) if alone else 0
    contexts = [copy_context() for _ in range(together)]  # a thread does not inherit its caller's

    def part(i: int, _: int) -> None:
        with torch.no_grad():
            contexts[i].run(run_one, i)

    if together:
        run_parts(part, together, 1)
    for i in range(together, len(running)):
        run_one(i)
    return [(running[i], diverged[i]) for i in sorted(diverged)]


def num_side_by_side(num_variants: int, largest: int, x: Tensor) -> int:
    """How many variants get one thread each; the others follow one by one, each on all threads.

    The result is a multiple of the number of threads: a variant left over would keep the others idle.

    Args:
        largest: weights of the variants' largest encoder, F * D.
        x: the batch, [R, D].
    """
    threads = torch.get_num_threads()
    too_much = largest > MOST_WEIGHTS or threads * x.numel() * x.element_size() > MOST_BYTES
    if x.device.type != "cpu" or too_much:
        return 0
    return num_variants - num_variants % threads if threads > 1 else 0
