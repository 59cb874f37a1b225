"""The fused operations of a step, and its random numbers, against the plain backend in float64 on the CPU."""

from typing import Any

import torch

from ...train.backends.choice import load_backend
from ...train.backends.gates import Gates
from ...train.pairs import Pairs
from ..notes import Notes
from .problems import Problem, compare, same_bits

SEED, BATCH, FIRST_ROW, ROWS = 2**40 + 7, 3, 5, 9  # of the random numbers
LIMIT = 0.5  # of the gradient's norm


def check_fused_operations(notes: Notes, backend: Any, problem: Problem, codes: Pairs) -> None:
    """Check the operations of a step that backends may fuse, and the random numbers."""
    for name, check in {
        "reconstruct": _check_reconstruct,
        "reconstruct_nested": _check_reconstruct_nested,
        "rank_gates": _check_rank_gates,
        "sum_rows": _check_sum_rows,
        "weight_gradients": _check_weight_gradients,
        "count_active": _check_count_active,
        "global_norm": _check_global_norm,
        "clip": _check_clip,
        "random_uniform": _check_random_uniform,
    }.items():
        with notes.attempt(f"{problem.label}: {name}"):
            check(notes, f"{problem.label}: {name}", backend, problem, codes)


def in_float64(pairs: Pairs) -> Pairs:
    """The same pairs on the CPU, with values in float64."""
    return Pairs(
        row_ptr=pairs.row_ptr.cpu(),
        latent=pairs.latent.cpu(),
        value=pairs.value.cpu().double(),
        num_latents=pairs.num_latents,
    )


def _plain() -> Any:
    return load_backend("plain")


def _check_reconstruct(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    scale = 2.0 if problem.whole else 0.7
    got = backend.reconstruct(codes, problem.W_dec, problem.x, scale)
    want = _plain().reconstruct(
        in_float64(codes), problem.W_dec.cpu().double(), problem.x.cpu().double(), scale
    )
    for part, ours, theirs in zip(("error", "dot products", "squares"), got, want, strict=True):
        exact = problem.whole and part == "error"  # the others may exceed the whole numbers of float32
        notes.check(f"{name}, {part}", *compare(ours, theirs, whole=exact))
    again = backend.reconstruct(codes, problem.W_dec, problem.x, scale)
    notes.check(f"{name}, again", same_bits(*zip(got, again, strict=True)))


def _check_reconstruct_nested(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    """Each two rows of codes are the rings of one row."""
    num_rows = codes.num_rows // 2 * 2
    rings, target, weights = codes.slice_rows(0, num_rows), problem.x[: num_rows // 2], (1.0, 2.0)
    got = backend.reconstruct_nested(rings, problem.W_dec, target, weights, 0.5)
    there = problem.W_dec.cpu().double(), target.cpu().double()
    want = _plain().reconstruct_nested(in_float64(rings), *there, weights, 0.5)
    for part, ours, theirs in zip(("error", "slopes", "dot products", "squares"), got, want, strict=True):
        exact = problem.whole and part in ("error", "slopes")
        notes.check(f"{name}, {part}", *compare(ours, theirs, whole=exact))
    again = backend.reconstruct_nested(rings, problem.W_dec, target, weights, 0.5)
    notes.check(f"{name}, again", same_bits(*zip(got, again, strict=True)))


def _check_rank_gates(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    a = problem.x @ problem.W.T
    for beta, weight in ((2.0, 1e-2), (0.5, 0.0)):
        gates = [
            Gates(beta=torch.tensor(beta, device=t.device), magnitude_weight=weight, layer_norm=True,
                  draw=(SEED, BATCH, FIRST_ROW, 0))
            for t in (a, a.cpu())
        ]  # fmt: skip
        want = _plain().rank_gates(a.cpu().double(), gates[1])
        notes.check(f"{name}, λ = {weight:g}", *compare(backend.rank_gates(a, gates[0]), want))


def _check_sum_rows(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    pre = problem.x @ problem.W.T
    for entropy in (False, True):
        got = backend.sum_rows(pre, positive=True, entropy=entropy)
        want = _plain().sum_rows(pre.cpu().double(), positive=True, entropy=entropy)
        notes.check(f"{name}{', entropy' if entropy else ''}", *compare(got, want))


def _check_weight_gradients(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    scale = 2.0 if problem.whole else 0.7
    slope = torch.sign(codes.value) * 2 if problem.whole else codes.value * 0.3
    error = problem.numbers(*problem.x.shape, seed=9)
    start = problem.numbers(*problem.W.shape, seed=7)

    def run(one: Any, pairs: Pairs, d_pre: Any, x: Any, errors: Any, begun: Any) -> list[Any]:
        enc, dec = begun.clone(), begun.clone()
        return [one.weight_gradients(pairs, d_pre, x, errors, scale, enc, dec), enc, dec]

    ours = (backend, codes, slope, problem.x, error, start)
    theirs = (t.cpu().double() for t in (slope, problem.x, error, start))
    got, want = run(*ours), run(_plain(), in_float64(codes), *theirs)
    for part, a, b in zip(("sums", "encoder", "decoder"), got, want, strict=True):
        notes.check(f"{name}, {part}", *compare(a, b, whole=problem.whole))
    notes.check(f"{name}, again", same_bits(*zip(got, run(*ours), strict=True)))


def _check_count_active(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    some = torch.arange(len(codes), device=problem.device) % 3 == 0
    holes = codes.with_value(codes.value.masked_fill(some, 0.0))
    dense = holes.to_dense().cpu() != 0
    for part, got, axis in zip(("rows", "latents"), backend.count_active(holes), (1, 0), strict=True):
        notes.check(f"{name}, {part}", *compare(got, dense.sum(axis), whole=True))


def _check_global_norm(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    gradients = [(problem.W, problem.W_dec), (problem.W_dec, None), (problem.b, None)]
    there = [(g.cpu().double(), None if of is None else of.cpu().double()) for g, of in gradients]
    notes.check(name, *compare(backend.global_norm(gradients), _plain().global_norm(there)))


def _check_clip(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    """The factor, 1 without a limit, and NaN from the first figures on that are not finite."""
    figures = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, device=problem.device)
    unsound = torch.zeros((), dtype=torch.float64, device=problem.device)
    want = torch.tensor(LIMIT / 3, dtype=torch.float64)
    notes.check(name, *compare(backend.clip(figures, LIMIT, unsound), want))
    free = backend.clip(figures, None, unsound)
    notes.check(f"{name}, without a limit", *compare(free, torch.ones(()), whole=True))
    backend.clip(figures * torch.inf, LIMIT, unsound)
    later = backend.clip(figures, LIMIT, unsound)
    notes.check(f"{name}, NaN once a figure was not finite", bool(later.isnan()) and bool(unsound.isnan()))


def _check_random_uniform(notes: Notes, name: str, backend: Any, problem: Problem, codes: Pairs) -> None:
    where = (SEED, BATCH, FIRST_ROW, ROWS, len(problem.W))
    here = backend.random_uniform(*where, problem.device)
    notes.check(
        f"{name} has the same bits everywhere",
        same_bits((here.cpu(), _plain().random_uniform(*where, "cpu"))),
    )
