"""Several variants on one batch: side by side, a thread for each, where that is faster.

A small step on two threads takes more than half of what it takes on one: threads wait for each other, and
short operations do not split. Steps of different variants have nothing to wait for. Large steps are matrix
products for the most part; those split well, and side by side they only press each other's weights out of the
caches. No result depends on the number of threads, so that a variant ends with the same bytes whatever it was
trained with. ``benchmarks/many_variants.py`` measures it.
"""

from collections.abc import Callable, Sequence
from contextvars import copy_context

import torch
from torch import Tensor

from ..backends.threads import run_parts
from .trainee import DivergedError, Trainee

MOST_BYTES = 256 * 2**20  # of centered rows, of which every variant under way has its own
MOST_WEIGHTS = 2**23  # of an encoder: where both ways take the same time on two cores


def each_variant(
    running: Sequence[Trainee], work: Callable[[Trainee], None], x: Tensor
) -> list[tuple[Trainee, DivergedError]]:
    """Do ``work`` for each of ``running`` on the batch ``x`` [R, D]; those that diverged, in their order."""
    diverged: dict[int, DivergedError] = {}

    def one(i: int) -> None:
        try:
            work(running[i])
        except DivergedError as error:
            diverged[i] = error

    largest = max((one.plan.num_latents * one.plan.d_model for one in running), default=0)
    together = side_by_side(len(running), largest, x)
    contexts = [copy_context() for _ in range(together)]  # a thread has none of its caller's

    def part(i: int, _: int) -> None:
        with torch.no_grad():
            contexts[i].run(one, i)

    if together:
        run_parts(part, together, 1)
    for i in range(together, len(running)):
        one(i)
    return [(running[i], diverged[i]) for i in sorted(diverged)]


def side_by_side(num_variants: int, largest: int, x: Tensor) -> int:
    """How many of the variants have a thread each; the rest have all threads, one after the other.

    As many as make full rounds of all threads: one left over would leave the other threads idle.

    Args:
        largest: weights of the largest encoder among them, F * D.
    """
    threads = torch.get_num_threads()
    too_much = largest > MOST_WEIGHTS or threads * x.numel() * x.element_size() > MOST_BYTES
    if x.device.type != "cpu" or too_much:
        return 0
    return num_variants - num_variants % threads if threads > 1 else 0
