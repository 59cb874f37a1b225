"""A training step of every kind, in turns with the encoder's matrix product alone.

Legend: B rows, D model width, F latents.
"""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...train.backends.scratch import release_scratch
from ...train.variants import VARIANTS
from ..config import Sizes
from ..notes import Notes
from ..timing import Cost, ratios, take_turns, timed, waiting_for
from ..trainees import fitting_latents, make_trainee, make_variant, step_of, unit_rows

WARM_UP = 2  # rounds that do not count: compilation, first touch of memory, the first guess of a threshold
PRODUCTS_OF_A_ROUND = 3  # about as many float32 products as a round of an average kind takes time
SMALLEST_ROWS, TRIAL_SHARE = 256, 8  # one of so many rows is multiplied to see how long a product takes
AT_A_TIME = {"cuda": 5}  # steps between two readings of the clock, so that a GPU is not waited for after each
FIRST_KIND = "topk"
PRODUCTS = {"product, float32": torch.float32, "product, bfloat16": torch.bfloat16}


def measure_steps(notes: Notes, sizes: Sizes, device: torch.device, backend: str) -> None:
    """The section ``steps``: every kind at every number of latents.

    ``backend`` is the name of the one that computes, for the titles.
    """
    for wanted in sizes.latents:
        latents = fitting_latents(wanted, sizes.rows, sizes.width, device)
        if latents < wanted:
            notes.leave_out(f"F = {wanted:,}", f"the memory has room for F = {latents:,} only")
        _measure_at(notes, sizes, latents, device, backend)


def _measure_at(notes: Notes, sizes: Sizes, latents: int, device: torch.device, backend: str) -> None:
    kinds = sorted(VARIANTS, key=lambda kind: (is_dense(kind, sizes.k), kind != FIRST_KIND, kind))
    rows = affordable_rows(sizes, latents, device, notes.seconds_left() / len(kinds))
    if rows < sizes.rows:
        notes.leave_out(f"B = {sizes.rows:,} at F = {latents:,}", f"slow or busy: B = {rows:,} instead")
    size = f"{backend}, F = {latents:,}, B = {rows:,}, D = {sizes.width}, k = {sizes.k}"
    x = unit_rows(2, rows, sizes.width, device)
    seconds: dict[str, list[float]] = {name: [] for name in PRODUCTS}
    for item in notes.each(f"{kind}, {backend}, F = {latents:,}" for kind in kinds):
        kind = item.partition(",")[0]
        with notes.attempt(f"{item}: a step"), torch.no_grad():
            try:
                found = _measure_kind(notes, kind, sizes, latents, x)
            except torch.OutOfMemoryError:
                notes.leave_out(item, "out of memory on the device")
                found = {}
            except UsageError as error:  # a kind that needs more rows
                notes.leave_out(item, str(error))
                found = {}
            for name in PRODUCTS:
                seconds[name] += found.get(name, [])
            if kind in found:
                notes.measure(f"step: {size}", kind, "ms", [1e3 * s for s in found[kind]])
                slower = ratios(found[kind], found["product, float32"])
                notes.measure(f"step / float32 product of the encoder alone: {size}", kind, "", slower)
        release_scratch()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for name, taken in seconds.items():
        if taken:
            notes.measure(f"step: {size}", f"{name}, of the encoder alone", "ms", [1e3 * s for s in taken])


def _measure_kind(notes: Notes, kind: str, sizes: Sizes, latents: int, x: Tensor) -> dict[str, list[float]]:
    """Seconds of a step of ``kind`` and of each product, round by round."""
    device, rows, width = x.device, x.shape[1], sizes.width
    k = min(sizes.k, latents // 2)
    trainee = make_trainee(make_variant(kind, k), rows=rows, latents=latents, width=width, device=device)
    W_enc = trainee.parameters["W_enc"].clone()
    ways = {kind: timer(step_of(trainee, x), device)}
    ways |= {name: timer(product(x, W_enc, dtype), device) for name, dtype in PRODUCTS.items()}
    warm_up = 1 if is_dense(kind, k) else WARM_UP
    costs = take_turns(ways, sizes.rounds, warm_up, time_left=notes.time_left)
    return {name: [cost.seconds for cost in found] for name, found in costs.items()}


def is_dense(kind: str, k: int) -> bool:
    """Whether no rule fixes L0, so that half of the latents are active at first: slow, they come last."""
    return make_variant(kind, k).expected_l0 is None


def affordable_rows(sizes: Sizes, latents: int, device: torch.device, seconds_of_kind: float) -> int:
    """``sizes.rows``, halved until a kind's warm-up and one round take about ``seconds_of_kind``.

    The time of a round is estimated from that of a float32 product of a few rows.
    """
    few = max(1, sizes.rows // TRIAL_SHARE)
    x = unit_rows(1, few, sizes.width, device)
    multiply = timer(product(x, unit_rows(1, latents, sizes.width, device)[0], torch.float32), device)
    multiply()
    rows, seconds = sizes.rows, multiply().seconds * sizes.rows / few
    while rows > SMALLEST_ROWS and seconds * PRODUCTS_OF_A_ROUND * (WARM_UP + 1) > seconds_of_kind:
        rows, seconds = rows // 2, seconds / 2
    return rows


def timer(
    work: Callable[[int], object], device: torch.device, together: int | None = None
) -> Callable[[], Cost]:
    """A function that times ``work(i)``, i = 0, 1, ...

    It gives the mean of ``together`` at a time; None is :data:`AT_A_TIME`.
    """
    together = together or AT_A_TIME.get(device.type, 1)
    numbers, wait = count(), waiting_for(device)

    def run() -> None:
        for _ in range(together):
            work(next(numbers))

    def measure() -> Cost:
        cost = timed(run, wait)
        return Cost(cost.seconds / together, cost.cpu_seconds / together)

    return measure


def product(x: Tensor, W: Tensor, dtype: torch.dtype) -> Callable[[int], Tensor]:
    """All pre-activations of batch i of ``x`` [batches, B, D] into memory that is there already.

    It is the least that a dense encoder ``W`` [F, D] does.
    """
    x, W = x.to(dtype), W.to(dtype)
    out = torch.empty(x.shape[1], W.shape[0], dtype=dtype, device=x.device)
    return lambda i: torch.mm(x[i % len(x)], W.T, out=out)
