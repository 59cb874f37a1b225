"""Each operation of :class:`saecache.train.backends.protocol.Backend` against its definition.

Selections are compared with :mod:`saecache.train.selection.reference`, products and optimizer steps with the
plain backend in float64 on the CPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...train.backends.choice import load_backend
from ...train.backends.protocol import AdamSettings, Backend
from ...train.backends.sources import Encoder
from ...train.pairs import Pairs
from ...train.selection import reference
from ...train.selection.errors import NonFiniteError
from ..notes import Notes
from .fused import check_fused_operations, in_float64
from .problems import Problem, compare, compare_selection, defined_pre_activations, make_codes, same_bits

TOO_HIGH = 1e30  # a guess of a threshold that nothing reaches
RARE = 0.99  # of all pre-activations lie below the threshold of ``above``


@torch.no_grad()
def check_operations(notes: Notes, problem: Problem) -> None:
    """Check all operations of the problem's backend on it."""
    backend, label = load_backend(problem.backend), problem.label
    with notes.attempt(f"{label}: sddmm"):
        pre = defined_pre_activations(backend, problem)
        exact = problem.x.cpu().double() @ problem.W.cpu().double().T + problem.b.cpu().double()
        notes.check(f"{label}: sddmm", *compare(pre, exact, whole=problem.whole))
        _check_pairs_alone(notes, backend, problem, pre)
        _check_selections(notes, backend, problem, pre)
        codes = make_codes(problem, pre)
        _check_products(notes, backend, problem, codes)
        check_fused_operations(notes, backend, problem, codes)
    _check_optimizer(notes, backend, problem)


def _check_pairs_alone(notes: Notes, backend: Backend, problem: Problem, pre: Tensor) -> None:
    """A pair alone, and a row alone, have the bits that they have among the others."""
    row, first = len(problem.x) // 3, len(problem.W) // 2
    latents = slice(first, first + 7)
    few = Pairs.from_dense(torch.ones(1, 7, device=problem.device))
    dots = backend.sddmm(few, problem.x[row : row + 1].clone(), problem.W[latents].clone())
    alone = same_bits((dots + problem.b[latents], pre[row, latents]))
    notes.check(f"{problem.label}: a pair's product does not depend on its neighbours", alone)


def _check_selections(notes: Notes, backend: Backend, problem: Problem, pre: Tensor) -> None:
    source = Encoder(problem.x, problem.W, problem.b)
    rows, latents = pre.shape
    counts = torch.randint(0, 3, (latents,), generator=torch.Generator().manual_seed(5)).clamp_max(rows)
    counts[3], counts[4] = rows, 0
    total = problem.k * rows
    bar = pre.flatten().sort().values[int(RARE * (pre.numel() - 1))].item()
    each = bar + torch.rand(latents, generator=torch.Generator().manual_seed(6)).round()
    each[0] = torch.inf
    all_alike = torch.full((latents,), bar)
    hint: list[Tensor | None] = [None]

    def largest_of_batch() -> Pairs:
        pairs, hint[0] = backend.largest_of_batch(source, total, None)
        return pairs

    def with_hint(guess: Tensor | None) -> Callable[[], Pairs]:
        return lambda: backend.largest_of_batch(source, total, guess)[0]

    on_cpu, device = pre.cpu(), problem.device
    per_batch = reference.per_batch(on_cpu, total)
    rules: list[tuple[str, Callable[[], Pairs], Tensor]] = [
        ("largest_per_row", lambda: backend.largest_per_row(source, problem.k),
         reference.per_row(on_cpu, problem.k)),
        ("largest_of_batch", largest_of_batch, per_batch),
        ("largest_of_batch with the last guess", lambda: with_hint(hint[0])(), per_batch),
        ("largest_of_batch with a guess too high", with_hint(torch.tensor(TOO_HIGH, device=device)),
         per_batch),
        ("largest_per_latent", lambda: backend.largest_per_latent(source, counts.to(device)),
         reference.per_latent(on_cpu, counts)),
        ("above", lambda: backend.above(source, all_alike.to(device)), reference.threshold(on_cpu, bar)),
        ("above, each latent its own", lambda: backend.above(source, each.to(device)),
         reference.threshold(on_cpu, each)),
    ]  # fmt: skip
    for name, select, mask in rules:
        with notes.attempt(f"{problem.label}: {name}"):
            pairs = select()
            notes.check(f"{problem.label}: {name}", *compare_selection(pairs, mask, pre))
    with notes.attempt(f"{problem.label}: NaN is refused"):
        notes.check(f"{problem.label}: NaN is refused", _refuses_nan(backend, problem))


def _refuses_nan(backend: Backend, problem: Problem) -> bool:
    x = problem.x.clone()
    x[-1, -1] = torch.nan
    try:
        backend.largest_per_row(Encoder(x, problem.W, problem.b), problem.k)
    except NonFiniteError:
        return True
    return False


def _check_products(notes: Notes, backend: Backend, problem: Problem, codes: Pairs) -> None:
    """The sparse products, each twice: in float64 it is the plain one, and the same bits come again."""
    plain, whole = load_backend("plain"), problem.whole
    value = torch.sign(codes.value) * 2 if whole else codes.value * 0.3
    weights, bias, target = problem.W_dec, problem.x[0], problem.numbers(*problem.W.shape, seed=7)
    there = in_float64(codes)
    value64, weights64, x64 = (t.cpu().double() for t in (value, weights, problem.x))

    def accumulate(one: Backend, pairs: Pairs, coefficient: Tensor, x: Tensor, out: Tensor) -> Tensor:
        one.accumulate_by_latent(pairs, coefficient, x, out)
        return out

    def add_decoded(one: Backend, pairs: Pairs, W: Tensor, sums: Tensor) -> Tensor:
        one.add_decoded(pairs, W, sums)
        return sums

    products: list[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]] = [
        ("decode", lambda: backend.decode(codes, weights), lambda: plain.decode(there, weights64)),
        ("decode with a bias", lambda: backend.decode(codes, weights, bias),
         lambda: plain.decode(there, weights64, bias.cpu().double())),
        ("add_decoded", lambda: add_decoded(backend, codes, weights, problem.x.clone()),
         lambda: add_decoded(plain, there, weights64, x64.clone())),
        ("accumulate_by_latent",
         lambda: accumulate(backend, codes, value, problem.x, target.clone()),
         lambda: accumulate(plain, there, value64, x64, target.cpu().double())),
        ("sum_per_latent", lambda: backend.sum_per_latent(codes, value),
         lambda: plain.sum_per_latent(there, value64)),
    ]  # fmt: skip
    for name, ours, definition in products:
        with notes.attempt(f"{problem.label}: {name}"):
            got = ours()
            notes.check(f"{problem.label}: {name}", *compare(got, definition(), whole=whole))
            notes.check(f"{problem.label}: {name}, again", same_bits((got, ours())))
    name = f"{problem.label}: add_decoded in two calls has the bits of decode"
    with notes.attempt(name):
        low, sums = codes.latent < len(weights) // 2, torch.zeros_like(problem.x)
        for part in (low, ~low):
            add_decoded(backend, codes.keep(part), weights, sums)
        notes.check(name, same_bits((sums, backend.decode(codes, weights))))


def _check_optimizer(notes: Notes, backend: Backend, problem: Problem) -> None:
    """The gradient's norm and Adam's step, with and without rows of norm 1."""
    plain, label = load_backend("plain"), problem.label
    shape, device = problem.W.shape, problem.device
    generator = torch.Generator().manual_seed(8)
    weights = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
    gradient = torch.randn(shape, generator=generator)
    moments = [torch.rand(shape, generator=generator) * 0.1 for _ in range(2)]
    settings = AdamSettings(
        learning_rate=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, decoupled=True,
        gradient_scale=0.5,
    )  # fmt: skip

    def step(one: Backend, tensors: list[Tensor], unit_rows: bool) -> list[Tensor]:
        parameter, slope, first, second = (t.clone() for t in tensors)
        one.adam_step(parameter, slope, first, second, 3, settings, unit_rows=unit_rows)
        return [parameter, first, second]

    ours = [t.to(device) for t in (weights, gradient, *moments)]
    theirs = [t.double() for t in (weights, gradient, *moments)]
    for unit_rows, of in ((False, ""), (True, ", rows of norm 1")):
        for name in ("row_squares", "gradient_norm"):
            with notes.attempt(f"{label}: {name}{of}"):
                got_norm = getattr(backend, name)(ours[1], ours[0] if unit_rows else None)
                want_norm = getattr(plain, name)(theirs[1], theirs[0] if unit_rows else None)
                notes.check(f"{label}: {name}{of}", *compare(got_norm, want_norm))
        with notes.attempt(f"{label}: adam_step{of}"):
            got, wanted = step(backend, ours, unit_rows), step(plain, theirs, unit_rows)
            results = [compare(a, b) for a, b in zip(got, wanted, strict=True)]
            worst = next((one for one in results if not one[0]), results[0])
            notes.check(f"{label}: adam_step{of}", *worst)
            again = step(backend, ours, unit_rows)
            notes.check(f"{label}: adam_step{of}, again", same_bits(*zip(got, again, strict=True)))
