"""Work that starts the same kernels on the same memory each time is recorded once and then replayed.

A CUDA graph starts all of its kernels with one call. On the host a launch takes some microseconds, so that
selecting the pairs of a small batch is limited by its launches. What is recorded reads nothing from the
device, allocates only what its sizes say, and has no choice to make: these are the selections of each row,
whose capacities are fixed and whose overflow is a number that is read afterwards.

**Nobody has run this on a GPU.** It is off unless ``SAECACHE_CUDA_GRAPHS=1`` is set. The tests record and
replay the same launches in Triton's interpreter.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...pairs import Pairs
from .largest import LargestPerRow, queue_largest_per_row
from .rounding import ScreenRows

VARIABLE = "SAECACHE_CUDA_GRAPHS"
WARM_UPS = 3  # before the work is recorded: kernels are compiled then, and bounds are tried

Result = TypeVar("Result")


class Graph(Protocol):
    """Launches that were recorded."""

    def replay(self) -> None:
        """Start them again, on the same memory."""


def record_cuda_graph(work: Callable[[], Result]) -> tuple[Graph, Result]:
    """Record the launches of ``work``, which does not run now; its results are where replays write them.

    Threads that bring batches may allocate meanwhile.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = work()
    return graph, found


@dataclass
class Replayed(Generic[Result]):
    """Work on batches of one shape, with everything else where it was.

    Attributes:
        work: takes the batch, and launches the same whatever is in it.
        record: makes a :class:`Graph` of it.
    """

    work: Callable[[Tensor], Result]
    record: Callable[[Callable[[], Result]], tuple[Graph, Result]] = record_cuda_graph
    calls: int = 0
    batch: Tensor | None = None
    graph: Graph | None = None
    result: Result | None = None

    def __call__(self, x: Tensor) -> Result:
        """The result for ``x``. A replay overwrites that of the one before: copy what shall stay."""
        self.calls += 1
        if self.calls <= WARM_UPS:
            return self.work(x)
        if self.graph is None:
            self.batch = batch = torch.empty_like(x, memory_format=torch.contiguous_format)
            work = self.work
            batch.copy_(x)
            work(batch)  # compiles what its place in memory needs, which a recording may not
            batch.copy_(x)  # what is kept of a batch is made anew, and recorded
            self.graph, self.result = self.record(lambda: work(batch))
            del self.work  # it holds weights, which are not to live as long as this
        assert self.batch is not None and self.result is not None
        self.batch.copy_(x)
        self.graph.replay()
        return self.result


_Selection = tuple[LargestPerRow, Tensor]  # and what it reads at its end
_selections: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # W -> (k, shape) -> (b, rows, Replayed)


def is_wanted(device: torch.device) -> bool:
    """Whether selections on ``device`` are replayed."""
    return device.type == "cuda" and os.environ.get(VARIABLE) == "1"


def largest_per_row(
    x: Tensor, W: Tensor, b: Tensor, k: int, rounded_W: ScreenRows, record: Any = record_cuda_graph
) -> Pairs:
    """As :func:`.largest.largest_per_row`, whose launches are replayed from the fourth call on.

    Args:
        W, b, rounded_W: where these are other tensors than at the call before, they are recorded anew; what
            they hold may change.
    """
    if not len(x):
        return queue_largest_per_row(x, W, b, k, rounded_W=rounded_W).pairs
    known = _selections.setdefault(W, {})
    former_b, former_rows, replayed = known.get((k, x.shape), (None, None, None))
    if replayed is None or former_b is not b or former_rows is not rounded_W:

        def work(batch: Tensor) -> _Selection:
            selection = queue_largest_per_row(batch, W, b, k, rounded_W=rounded_W)
            return selection, selection.numbers()

        replayed = Replayed(work, record)
        known[k, x.shape] = b, rounded_W, replayed
    selection, numbers = replayed(x)
    found = selection.finished(numbers)
    return Pairs(
        row_ptr=found.row_ptr.clone(),
        latent=found.latent.clone(),
        value=found.value.clone(),
        num_latents=found.num_latents,
        num_positive=found.num_positive,
    )
