"""Milliseconds of every Triton kernel on a CUDA device, by its events: for whoever makes them faster.

Legend: B rows, D model width, F latents.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...train.backends.protocol import AdamSettings
from ...train.backends.triton import (
    above,
    adam,
    candidates,
    decode,
    exact,
    gradients,
    largest,
    largest_of_batch,
    random_numbers,
    rounding,
    screen,
    sums,
    transpose,
)
from ...train.pairs import Pairs
from ..config import Sizes
from ..notes import Notes
from ..trainees import fitting_latents, unit_rows

WARM_UP = 2
GRAPH = "kernels of a TopK step, CUDA graph"
SLOW_ROUNDS = 3  # of kernels that look at half of all pairs or more
SCREENS = (  # sizes of the product's blocks to compare: BM, BN, BK, warps, stages
    (128, 256, 64, 8, 4),
    (128, 128, 64, 4, 4),
    (128, 128, 64, 8, 4),
    (256, 128, 64, 8, 3),
)


@torch.no_grad()
def measure_kernels(notes: Notes, sizes: Sizes, device: torch.device) -> None:
    """The section ``kernel times``: at the first number of latents."""
    latents = fitting_latents(sizes.latents[0], sizes.rows, sizes.width, device)
    kernels = _Kernels(notes, sizes, latents, device)
    for name in notes.each(kernels.groups):
        with notes.attempt(name):
            kernels.groups[name]()
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    notes.measure(kernels.title, "peak memory of the process so far", "GiB", [peak])


def milliseconds(run: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Time each of ``rounds`` calls with CUDA events."""
    for _ in range(WARM_UP):
        run()
    stream = torch.cuda.current_stream(device)
    make_event: Any = torch.cuda.Event
    events = [[make_event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for first, last in events:
        first.record(stream)
        run()
        last.record(stream)
    torch.cuda.synchronize(device)
    return [first.elapsed_time(last) for first, last in events]


class _Kernels:
    """Rows, weights and codes that the kernels work on, made once, and the kernels in groups."""

    def __init__(self, notes: Notes, sizes: Sizes, latents: int, device: torch.device) -> None:
        self.notes, self.sizes, self.device, self.latents = notes, sizes, device, latents
        self.title = f"kernels: F = {latents:,}, B = {sizes.rows:,}, D = {sizes.width}, k = {sizes.k}"
        self.x = unit_rows(1, sizes.rows, sizes.width, device)[0]
        self.W = unit_rows(1, latents, sizes.width, device)[0]
        self.W_dec = self.W.clone()
        self.b = 0.1 * torch.randn(latents, generator=torch.Generator().manual_seed(3)).to(device)
        self.rounded = rounding.round_latents(self.W)
        self.codes = largest.largest_per_row(self.x, self.W, self.b, sizes.k, rounded_W=self.rounded)
        self.groups: dict[str, Callable[[], None]] = {
            "screen": self.screens,
            "candidates": self.find_candidates,
            "selections": self.selections,
            "products": self.products,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "kernels of a TopK step": self.whole_step,
            GRAPH: self.whole_step_as_graph,
        }

    def time(self, name: str, run: Callable[[], object], rounds: int | None = None) -> None:
        found = milliseconds(run, rounds or 3 * self.sizes.rounds, self.device)
        self.notes.measure(self.title, name, "ms", found)

    def screens(self) -> None:
        x16, W16 = self.x.bfloat16(), self.W.bfloat16()
        product = torch.empty(len(x16), len(W16), dtype=torch.bfloat16, device=self.device)
        self.time("bare bfloat16 product of torch", lambda: torch.matmul(x16, W16.T, out=product))
        rows = rounding.round_batch(self.x)
        self.time("round_batch", lambda: rounding.round_batch(self.x))
        self.time("round_latents", lambda: rounding.round_latents(self.W))
        self.time("screen", lambda: screen.screen(rows, self.rounded, self.b))
        ours = screen.product_options
        for sizes in SCREENS:
            BM, BN, BK, warps, stages = sizes
            chosen = {"BM": BM, "BN": BN, "BK": BK, "num_warps": warps, "num_stages": stages}
            name = f"screen {BM} x {BN} x {BK}, {warps} warps, {stages} stages"
            screen.product_options = lambda _, chosen=chosen: dict(chosen)  # type: ignore[misc]
            try:
                self.time(name, lambda: screen.screen(rows, self.rounded, self.b))
            except Exception as error:  # noqa: BLE001 - blocks that this GPU has no shared memory for
                self.notes.leave_out(name, f"{type(error).__name__}: {str(error)[:80]}")
            finally:
                screen.product_options = ours

    def find_candidates(self) -> None:
        x, W, k = self.x, self.W, self.sizes.k
        found = screen.screen(rounding.round_batch(x), self.rounded, self.b)
        self.time("least_of_rows", lambda: candidates.least_of_rows(found, k))
        least = candidates.least_of_rows(found, k)
        room = candidates.room_for(len(x), len(W), len(x) * k)
        self.time("candidates", lambda: candidates.candidates(found, least, "row", room, x, W))
        some = candidates.candidates(found, least, "row", room, x, W)
        self.notes.measure(self.title, "candidates of a row", "", [int(some.count) / len(x)])
        self.notes.measure(self.title, "room for candidates of a row", "", [room / len(x)])
        self.time(
            "exact of candidates",
            lambda: exact.exact_at(some.row, some.column, x, W, self.b, some.value, count=some.count),
        )

    def selections(self) -> None:
        x, W, b, rounded = self.x, self.W, self.b, self.rounded
        B, F, k = len(x), len(W), self.sizes.k
        queue, per_row = largest.queue_largest_per_row, largest.largest_per_row
        self.time("largest_per_row, queued", lambda: queue(x, W, b, k, rounded_W=rounded))
        self.time("largest_per_row", lambda: per_row(x, W, b, k, rounded_W=rounded))
        of_batch = largest_of_batch.largest_of_batch
        self.time("largest_of_batch", lambda: of_batch(x, W, b, B * k, rounded_W=rounded))
        counts = torch.full((F,), -(-B * k // F), dtype=torch.int64, device=self.device)
        total = int(counts.sum())
        per_latent = largest.largest_per_latent
        self.time("largest_per_latent", lambda: per_latent(x, W, b, counts, total=total, rounded_W=rounded))
        bar = self.codes.value.median()
        self.time("above", lambda: above.above(x, W, b, bar, rounded_W=rounded))
        self.time("above, half of all", lambda: above.above(x, W, b, bar * 0, rounded_W=rounded), SLOW_ROUNDS)
        self.time("exact_matrix", lambda: exact.exact_matrix(x, W, b), SLOW_ROUNDS)
        random = random_numbers.random_uniform
        self.time("random_uniform", lambda: random(1, 2, 0, B, F, self.device))

    def fresh(self) -> Pairs:
        """The codes, without what was made for them before."""
        codes = self.codes
        return Pairs(
            row_ptr=codes.row_ptr, latent=codes.latent, value=codes.value, num_latents=codes.num_latents
        )

    def products(self) -> None:
        codes, x, W_dec = self.codes, self.x, self.W_dec
        self.time("by_latent", lambda: transpose.by_latent(self.fresh()))
        self.time("sddmm", lambda: exact.sddmm(codes, x, self.W))
        self.time("decode", lambda: decode.decode(codes, W_dec))
        self.time("reconstruct", lambda: decode.reconstruct(codes, W_dec, x))
        self.time("sum_per_latent", lambda: sums.sum_per_latent(codes, codes.value))

    def _gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(self.W), torch.zeros_like(self.W), torch.zeros_like(self.b)

    def gradients(self) -> None:
        error, dots, _ = decode.reconstruct(self.codes, self.W_dec, self.x)
        outputs = self._gradients()
        arguments: Any = (self.codes, dots, self.codes.value, self.x, error, *outputs)
        self.time("weight_gradients, add", lambda: gradients.weight_gradients(*arguments))
        self.time("weight_gradients, write", lambda: gradients.weight_gradients(*arguments, add=False))
        one = gradients.accumulate_by_latent
        self.time("accumulate_by_latent", lambda: one(self.codes, dots, self.x, outputs[0]))

    def optimizer(self) -> None:
        settings = AdamSettings(learning_rate=1e-4, betas=(0.9, 0.999), eps=1e-8)
        slope, m, v = 1e-3 * self.x.mean() + torch.zeros_like(self.W), *self._gradients()[:2]
        p, q, step = self.W.clone(), self.W.clone(), torch.ones((), dtype=torch.int64, device=self.device)
        make = adam.adam_numbers
        numbers = make(settings, step, self.device)
        self.time("adam_numbers", lambda: make(settings, step, self.device))
        take = adam.adam_step
        self.time("adam_step", lambda: take(p, slope, m, v, 1, settings, numbers=numbers))
        rounded = rounding.round_latents(p)
        self.time(
            "adam_step, refresh", lambda: take(p, slope, m, v, 1, settings, numbers=numbers, refresh=rounded)
        )
        self.time(
            "adam_step, unit rows",
            lambda: take(q, slope, m, v, 1, settings, numbers=numbers, unit_rows=True),
        )
        self.time("gradient_norm", lambda: adam.gradient_norm(slope))
        self.time("gradient_norm, unit rows", lambda: adam.gradient_norm(slope, q))

    def whole_step(self) -> None:
        self.time("kernels of a TopK step", self.make_step())

    def make_step(self) -> Callable[[], None]:
        """A function that launches the kernels of a TopK step, one after the other."""
        settings = AdamSettings(learning_rate=1e-4, betas=(0.9, 0.999), eps=1e-8)
        x, b, k = self.x, self.b, self.sizes.k
        p, q, step = self.W.clone(), self.W_dec.clone(), torch.ones((), dtype=torch.int64, device=self.device)
        enc, dec, bias = self._gradients()
        m, v, _ = self._gradients()
        rounded = rounding.round_latents(p)

        def take_step() -> None:
            codes = largest.queue_largest_per_row(x, p, b, k, rounded_W=rounded).pairs
            error, dots, _ = decode.reconstruct(codes, q, x)
            gradients.weight_gradients(codes, dots, codes.value, x, error, enc, dec, bias, add=False)
            norm = (adam.gradient_norm(enc).square() + adam.gradient_norm(dec, q).square()).sqrt()
            scale = (1.0 / (norm + 1e-6)).clamp_max(1.0)
            numbers = adam.adam_numbers(settings, step, self.device, gradient_scale=scale)
            adam.adam_step(p, enc, m, v, 1, settings, numbers=numbers, refresh=rounded)
            adam.adam_step(q, dec, m, v, 1, settings, numbers=numbers, unit_rows=True)

        return take_step

    def whole_step_as_graph(self) -> None:
        """The same kernels, captured once and replayed."""
        take_step = self.make_step()
        make_stream: Any = torch.cuda.Stream
        side = make_stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            take_step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            take_step()
        self.time(GRAPH, graph.replay)
