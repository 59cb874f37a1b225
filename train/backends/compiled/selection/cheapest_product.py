"""Choose the fastest matrix product for screening, on this processor and for these rows.

The choice never changes a selection: all products select the same pairs, bit for bit.
"""

from contextlib import ExitStack
from functools import cache, partial
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...bounds import Product
from ...threads import num_threads, run_parts
from .scan import CHUNK
from .screening_products import LARGEST_CODE, ProductFactors, factors

SMALLEST_LATENTS = 1024  # below this the product is a small part of a step
ROWS, LATENTS = 512, 4096  # the size of the products that are timed
REPETITIONS = 4
CLEARLY_FASTER = 1.25  # needed, because a screen also costs a rounded copy of W_enc and more candidates
SAMPLE_ROWS, SAMPLE_LATENTS = 32, 2048  # the sample in which candidates are counted
LARGEST_SHARE = 0.1  # int8 is not tried for more of all latents, because too many are then near the least
LATENTS_PER_CANDIDATE = 40  # int8 pays if it saves the products of so many latents per added candidate


def cheapest_product(x: Tensor, W: Tensor, b: Tensor, per_row: float | None) -> Product:
    """Choose for rows ``x`` [B, D] and an encoder [F, D], [F], to find about ``per_row`` pairs of each row.

    None excludes int8, whose bounds are wide.
    """
    num_latents, width = W.shape
    if num_latents < SMALLEST_LATENTS or len(x) == 0:
        return "float32"
    fastest = _fastest(width)
    if fastest != "int8":
        return fastest
    if per_row is None or per_row > LARGEST_SHARE * num_latents:
        return _fastest(width, eight_bits=False)
    if added_candidates(x, W, b, per_row) * LATENTS_PER_CANDIDATE < num_latents:
        return "int8"
    return _fastest(width, eight_bits=False)


def added_candidates(x: Tensor, W: Tensor, b: Tensor, per_row: float) -> float:
    """Estimate, on some rows and latents, how many candidates per row int8's wide bounds add to ``per_row``.

    It assumes that the least of a row's ``per_row`` largest pre-activations is about known.
    """
    num_latents = len(W)
    rows = x[torch.linspace(0, len(x) - 1, min(len(x), SAMPLE_ROWS)).long()]
    some = slice(None, None, -(-num_latents // SAMPLE_LATENTS))
    latents = W[some].contiguous()
    pre = torch.addmm(b[some], rows, latents.T)
    with factors("int8", rows, latents) as rounded:
        bounds = rounded.bounds()
    error = bounds.slack[:, None] * bounds.norm + bounds.relative * pre.abs()
    share = len(latents) / num_latents
    rank = min(max(1, round(per_row * share)), len(latents))
    least = pre.topk(rank, dim=1).values[:, -1:]
    reaching = (pre + error >= least).sum() / len(rows)
    return float(reaching - rank) / share


@cache
def _fastest(width: int, *, eight_bits: bool = True) -> Product:
    """The fastest product that keeps its bounds (:mod:`...bounds`), measured once per width (0.2 s)."""
    best: Product = "float32"
    others: tuple[Product, ...] = ("bfloat16", "int8") if eight_bits else ("bfloat16",)
    seconds = _seconds(width)
    for product in others:
        if seconds[product] * CLEARLY_FASTER < seconds[best] and keeps_bounds(product, width):
            best = product
    return best


def _trial(width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, width, generator=generator), torch.randn(LATENTS, width, generator=generator)


@cache
def _seconds(width: int) -> dict[Product, float]:
    """Time each product without preparing its factors; in turns, so that other programs slow all equally."""
    x, w = _trial(width)
    least: dict[Product, float] = {"float32": inf, "bfloat16": inf}
    if hasattr(torch, "_int_mm"):
        least["int8"] = inf
    with ExitStack() as stack:
        ready = {product: stack.enter_context(factors(product, x, w)) for product in least}
        for _ in range(REPETITIONS):
            for product, one in ready.items():
                out, tops = torch.empty(ROWS, LATENTS, dtype=one.dtype), _tops(ROWS)
                started = perf_counter()
                try:
                    run_parts(partial(_score_part, one, out, tops), ROWS, -(-ROWS // num_threads()))
                except RuntimeError:  # torch has no such product for this processor
                    continue
                least[product] = min(least[product], perf_counter() - started)
    return {"int8": inf, **least}


def _score_part(ready: ProductFactors, out: Tensor, tops: Any, start: int, stop: int) -> None:
    ready.score(start, stop, np.zeros(out.shape[1], np.float32), out[start:stop], tops[start:stop])


def _tops(num_rows: int) -> Any:
    return np.empty((num_rows, LATENTS // CHUNK), np.int32)


def keeps_bounds(product: Product, width: int) -> bool:
    """Check the bounds on random rows, and int8 sums on the largest codes.

    Some processors first add int8 products up in sixteen bits, which overflows.
    """
    if product == "int8":
        codes = torch.full((ROWS, width), LARGEST_CODE, dtype=torch.int8)
        codes[::2] *= -1
        if not torch.equal(torch._int_mm(codes, codes.T).double(), codes.double() @ codes.double().T):
            return False
    x, w = _trial(width)
    with factors(product, x, w) as ready:
        out = torch.empty(ROWS, LATENTS, dtype=ready.dtype)
        _score_part(ready, out, _tops(ROWS), 0, ROWS)
        bounds = ready.bounds()
    score = out.double()
    allowed = bounds.slack[:, None].double() * bounds.norm + bounds.relative * score.abs()
    return bool(((score - x.double() @ w.double().T).abs() <= allowed).all())
