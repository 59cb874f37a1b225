"""Whether a bfloat16 product pays as a screen on this processor. Either answer selects the same pairs, bit
for bit.
"""

from functools import cache
from time import perf_counter

import torch
from torch import Tensor

from .bounds import product_bounds, row_norms

SMALLEST_LATENTS = 1024  # below this the product is a small part of a step
ROWS, LATENTS = 256, 4096  # of the trial
REPETITIONS = 3
CLEARLY_FASTER = 1.5  # the screen costs a rounded copy of W_enc and more candidates


def bfloat16_pays(num_latents: int, width: int) -> bool:
    """True when screening ``num_latents`` latents of ``width`` in bfloat16 is clearly cheaper than in
    float32.
    """
    return num_latents >= SMALLEST_LATENTS and _is_faster(width)


@cache
def _is_faster(width: int) -> bool:
    """Measured once for each width, in about 0.1 s; also that the processor keeps the promises of
    :mod:`.bounds`.
    """
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, width, generator=generator) for n in (ROWS, LATENTS))
    x_rounded, w_rounded = x.bfloat16(), w.bfloat16()
    if not _bounds_hold(x, w, x_rounded, w_rounded):
        return False
    exact = torch.empty(ROWS, LATENTS)
    screen = exact.bfloat16()
    slow = min(_seconds(x, w, exact) for _ in range(REPETITIONS))
    fast = min(_seconds(x_rounded, w_rounded, screen) for _ in range(REPETITIONS))
    return slow > CLEARLY_FASTER * fast


def _seconds(x: Tensor, w: Tensor, out: Tensor) -> float:
    started = perf_counter()
    torch.mm(x, w.T, out=out)
    return perf_counter() - started


def _bounds_hold(x: Tensor, w: Tensor, x_rounded: Tensor, w_rounded: Tensor) -> bool:
    score = torch.mm(x_rounded, w_rounded.T).double()
    bounds = product_bounds(row_norms(x, x_rounded), row_norms(w, w_rounded), x.shape[1], "bfloat16")
    allowed = bounds.slack[:, None].double() * bounds.norm + bounds.relative * score.abs()
    return bool(((score - x.double() @ w.double().T).abs() <= allowed).all())
