"""What the Triton kernels offer beyond the operations of a backend: fused and queued forms of them.

The kernels run on a GPU, or in Triton's interpreter on the CPU.
"""

import torch
from torch import Tensor

from ...train.backends.plain.adam import adam_step as plain_adam_step
from ...train.backends.protocol import AdamSettings
from ...train.backends.triton import (
    above,
    adam,
    decode,
    exact,
    gradients,
    largest,
    rounding,
    sums,
    transpose,
)
from ...train.pairs import Pairs
from ...train.selection import reference
from ..notes import Notes
from .problems import Problem, compare, compare_selection, every_pair, make_codes, same_bits


@torch.no_grad()
def check_kernels(notes: Notes, problem: Problem) -> None:
    """Check the kernels on ``problem``."""
    x, W, b, label = problem.x, problem.W, problem.b, problem.label
    with notes.attempt(f"{label}: exact_matrix"):
        pre = exact.exact_matrix(x, W, b)
        every = every_pair(len(x), len(W), problem.device)
        at_pairs = exact.exact(every, x, W, b).view_as(pre)
        notes.check(f"{label}: exact_matrix has the bits of exact", same_bits((pre, at_pairs)))
        _check_queued(notes, problem, pre)
        codes = make_codes(problem, pre)
        _check_reconstruct(notes, problem, codes)
        _check_weight_gradients(notes, problem, codes)
    _check_adam_with_refresh(notes, problem)


def _check_queued(notes: Notes, problem: Problem, pre: Tensor) -> None:
    """Selections that are not waited for, or that have a bar that many pairs reach."""
    x, W, b, label = problem.x, problem.W, problem.b, problem.label
    with notes.attempt(f"{label}: queue_largest_per_row"):
        pairs = largest.queue_largest_per_row(x, W, b, problem.k).finished()
        mask = reference.per_row(pre.cpu(), problem.k)
        notes.check(f"{label}: queue_largest_per_row", *compare_selection(pairs, mask, pre))
    with notes.attempt(f"{label}: above, where many reach the threshold"):
        pairs = above.above(x, W, b, torch.zeros((), device=problem.device), strict=False)
        name = f"{label}: above, where many reach the threshold"
        notes.check(name, *compare_selection(pairs, pre.cpu() >= 0, pre))


def _check_reconstruct(notes: Notes, problem: Problem, codes: Pairs) -> None:
    """Error, dot products and squares in one kernel, and the order by latents."""
    label, whole = problem.label, problem.whole
    W_dec = problem.W_dec
    error64 = codes.to_dense().cpu().double() @ W_dec.cpu().double() - problem.x.cpu().double()
    with notes.attempt(f"{label}: reconstruct"):
        error, dots, squared = decode.reconstruct(codes, W_dec, problem.x)
        rows, latents = codes.rows().cpu(), codes.latent.cpu()
        want = (error64[rows] * W_dec.cpu().double()[latents]).sum(1)
        notes.check(f"{label}: reconstruct, error", *compare(error, error64, whole=whole))
        notes.check(f"{label}: reconstruct, dots", *compare(dots, want))  # whole numbers may be too large
        notes.check(f"{label}: reconstruct, squares", *compare(squared, error64.square().sum(1)))
        same = same_bits((dots, exact.sddmm(codes, error, W_dec)))
        notes.check(f"{label}: reconstruct, dots have the bits of sddmm", same)
    with notes.attempt(f"{label}: by_latent"):
        order = transpose.by_latent(codes)
        pair = torch.argsort(codes.latent.cpu(), stable=True)
        ptr = torch.searchsorted(codes.latent.cpu()[pair], torch.arange(len(problem.W) + 1))
        right = same_bits(
            (order.pair.cpu(), pair), (order.row.cpu(), rows[pair]), (order.latent_ptr.cpu(), ptr)
        )
        notes.check(f"{label}: by_latent", right)
    with notes.attempt(f"{label}: count_per_latent"):
        counted = sums.count_per_latent(codes)
        notes.check(f"{label}: count_per_latent", *compare(counted, ptr.diff(), whole=True))


def _check_weight_gradients(notes: Notes, problem: Problem, codes: Pairs) -> None:
    """The gradients of both matrices and of the bias in one pass."""
    label, whole = problem.label, problem.whole
    x, error = problem.x, problem.numbers(*problem.x.shape, seed=9)
    slope = torch.sign(codes.value) * 2 if whole else codes.value * 0.3
    by_slope = codes.with_value(slope).to_dense().cpu().double()
    by_value = codes.to_dense().cpu().double()

    def run() -> list[Tensor]:
        outputs = [torch.ones_like(problem.W), torch.ones_like(problem.W), torch.ones_like(problem.b)]
        gradients.weight_gradients(codes, slope, codes.value, x, error, *outputs)
        return outputs

    with notes.attempt(f"{label}: weight_gradients"):
        got = run()
        wanted = {
            "encoder": by_slope.T @ x.cpu().double() + 1,
            "decoder": by_value.T @ error.cpu().double() + 1,
            "bias": by_slope.sum(0) + 1,
        }
        for (name, want), one in zip(wanted.items(), got, strict=True):
            notes.check(f"{label}: weight_gradients, {name}", *compare(one, want, whole=whole))
        notes.check(f"{label}: weight_gradients, again", same_bits(*zip(got, run(), strict=True)))
        alone = torch.ones_like(problem.W)
        gradients.accumulate_by_latent(codes, slope, x, alone)
        same = same_bits((alone, got[0]))
        notes.check(f"{label}: weight_gradients have the bits of accumulate_by_latent", same)


def _check_adam_with_refresh(notes: Notes, problem: Problem) -> None:
    """The step that reads its number from the device and refreshes the rounded encoder."""
    label, shape, device = problem.label, problem.W.shape, problem.device
    generator = torch.Generator().manual_seed(8)
    weights = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
    slope, first, second = (torch.rand(shape, generator=generator) * scale for scale in (1, 0.1, 0.1))
    settings = AdamSettings(learning_rate=1e-2, betas=(0.9, 0.999), eps=1e-8, gradient_scale=0.5)
    with notes.attempt(f"{label}: adam_step with refresh"):
        p, g, m, v = (t.to(device).clone() for t in (weights, slope, first, second))
        refresh = rounding.round_latents(p)
        step = torch.full((), 3, dtype=torch.int64, device=device)
        adam.adam_step(p, g, m, v, step, settings, unit_rows=True, refresh=refresh)
        p64, g64, m64, v64 = (t.double() for t in (weights, slope, first, second))
        plain_adam_step(p64, g64, m64, v64, 3, settings, unit_rows=True)
        results = [compare(a, b) for a, b in ((p, p64), (m, m64), (v, v64))]
        notes.check(f"{label}: adam_step with refresh", *next((r for r in results if not r[0]), results[0]))
        fresh = rounding.round_latents(p)
        right = same_bits((refresh.rounded, fresh.rounded), (fresh.rounded, p.bfloat16()))
        notes.check(f"{label}: the refreshed rows are the rounded ones", right)
        name = f"{label}: the refreshed factors are those of the rows"
        notes.check(name, *compare(refresh.factor, fresh.factor))
