"""Short training runs of every kind: on the device, again on the device, and on the CPU.

The first step selects from whole numbers, whose pre-activations every device computes exactly: all devices
select the same pairs. Losses of random rows differ by rounding only. A repeated run has the same bits.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...train.backends.choice import use_backend
from ...train.engine.trainee import Trainee
from ...train.pairs import Pairs
from ...train.variants import VARIANTS
from ...train.variants.base.rows import Rows
from ..notes import Notes
from ..trainees import EXTRAS, make_trainee, make_variant, step_of, unit_rows
from .problems import NEAR, numbers, same_bits

K, STEPS = 8, 4
DEAD_AFTER_ROWS = 1000  # a fourth of the latents is dead from the start, so that AuxK works


@dataclass(frozen=True)
class Place:
    """A device, and the name of the backend that computes there."""

    device: torch.device
    backend: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}"


def check_training(
    notes: Notes,
    here: Place,
    there: Place,
    *,
    rows: int,
    latents: int,
    width: int,
    kinds: Iterable[str] = VARIANTS,
) -> None:
    """Check every kind of SAE ``here``, the device, against ``there``, the CPU."""
    notes.find("compared", f"{here} with {there}: {STEPS} steps, F = {latents}, B = {rows}, D = {width}")
    for item in notes.each(f"{here.backend}: {kind}" for kind in kinds):
        kind = item.partition(": ")[2]
        with notes.attempt(item), torch.no_grad():
            _check_selection(notes, kind, here, there, rows, latents, width)
            _check_run(notes, kind, here, there, rows, latents, width)


def _check_selection(
    notes: Notes, kind: str, here: Place, there: Place, rows: int, latents: int, width: int
) -> None:
    """What the first step selects from whole numbers, and which latents and rows it then finds active."""
    found = {}
    for place in (here, there):
        trainee = _start(kind, place, rows, latents, width)
        for seed, (name, shape) in enumerate(
            {"W_enc": (latents, width), "W_dec": (latents, width), "b_enc": (latents,)}.items()
        ):
            trainee.parameters[name].copy_(numbers(*shape, seed=seed, whole=True))
        x = numbers(1, rows, width, seed=4, whole=True).to(place.device)
        with use_backend(place.backend):
            pairs = trainee.variant.encode(
                Rows(x_centered=x[0], parameters=trainee.parameters, state=trainee.state), as_trained=True
            )
            step_of(trainee, x, DEAD_AFTER_ROWS)(0)
            trainee.settle()
        active = trainee.interval.tensors()["l0_histogram"].cpu(), trainee.rows_since_active.cpu()
        found[place] = pairs, active
    (ours, active), (theirs, expected) = found[here], found[there]
    notes.check(f"{here.backend}: {kind}: same selection in step 1", *_compare_pairs(ours, theirs))
    same = same_bits(*zip(active, expected, strict=True))
    detail = "" if same else "the numbers of active latents of rows, or the latents that were active, differ"
    notes.check(f"{here.backend}: {kind}: same latents active in step 1", same, detail)


def _compare_pairs(ours: Pairs, theirs: Pairs) -> tuple[bool, str]:
    tensors = [
        (getattr(ours, name).cpu(), getattr(theirs, name).cpu()) for name in ("row_ptr", "latent", "value")
    ]
    if same_bits(*tensors):
        return True, f"{len(theirs):,} pairs"
    return False, f"{len(ours):,} pairs here and {len(theirs):,} there, or other places or values"


def _check_run(
    notes: Notes, kind: str, here: Place, there: Place, rows: int, latents: int, width: int
) -> None:
    runs = [_run(kind, place, rows, latents, width) for place in (here, here, there)]
    (losses, tensors), (_, again), (expected, _) = runs
    different = [name for name, tensor in tensors.items() if not torch.equal(tensor, again[name])]
    notes.check(f"{here.backend}: {kind}: same bits when repeated", not different, ", ".join(different[:5]))
    if losses.keys() != expected.keys():
        notes.check(
            f"{here.backend}: {kind}: losses", False, f"expected {sorted(expected)}, got {sorted(losses)}"
        )
        return
    errors = {
        name: float((value - expected[name]).abs() / expected[name].abs().clamp_min(1e-30))
        for name, value in losses.items()
    }
    worst = max(errors, key=errors.__getitem__)
    detail = f"{worst} differs by {errors[worst]:.1e}, expected at most {NEAR:g}"
    notes.check(f"{here.backend}: {kind}: losses", errors[worst] <= NEAR, detail)


def _run(
    kind: str, place: Place, rows: int, latents: int, width: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses, summed over the steps, and copies of all tensors; both on the CPU."""
    trainee = _start(kind, place, rows, latents, width)
    with use_backend(place.backend):
        take = step_of(trainee, unit_rows(STEPS, rows, width, place.device), DEAD_AFTER_ROWS)
        for i in range(STEPS):
            take(i)
        trainee.settle()
    sums = trainee.interval.tensors()
    losses = {name: t.cpu() for name, t in sums.items() if name.startswith("losses.")}
    losses["squared_error"] = sums["squared_error"].cpu()
    tensors = {
        f"{group}.{name}": tensor.cpu().clone()
        for group, held in trainee.tensors().items()
        for name, tensor in held.items()
    }
    return losses, tensors


def _start(kind: str, place: Place, rows: int, latents: int, width: int) -> Trainee:
    variant = make_variant(kind, K, **EXTRAS.get(kind, {}))
    trainee = make_trainee(variant, rows=rows, latents=latents, width=width, device=place.device)
    trainee.rows_since_active[::4] = 2 * DEAD_AFTER_ROWS
    return trainee
