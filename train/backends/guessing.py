"""BatchTopK and Mutual Choice by a guessed threshold: the largest pre-activations of a whole batch.

Pairs that reach a guess are collected, block by block; when they are enough, the largest of them are the
answer, else the guess is lowered. A guess that is too low costs little and one that is too high a second look
at all pairs: it is the lower one of what the last batch and what some pairs of this one suggest.

Legend: B rows, F latents, P pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ..pairs import Pairs
from .plain.products import matmul
from .sources import Encoder, Source

MARGIN = 1.25  # pairs that a guess should let through, for each one wanted
SAMPLE_ROWS, SAMPLE_LATENTS = 256, 2048  # that guesses are taken from
SAMPLE_MARGINS = (1.3, 4.0)  # of the first guess, and of the one after a guess that was too high


@dataclass(frozen=True, kw_only=True)
class Collector:
    """What of a backend is needed here.

    Attributes:
        reaching: ``reaching(source, threshold, total)``: at least the ``total`` largest of the pairs that
            reach the number ``threshold``, or all that do.
        kth_largest: the k-th largest of values, float32 of any shape without NaN.
        mask_of_largest: the places of the ``count`` largest of values [n], the first of equal ones: bool [n].
    """

    reaching: Callable[[Source, float, int], Pairs]
    kth_largest: Callable[[Tensor, int], float]
    mask_of_largest: Callable[[Tensor, int], Tensor]


def largest_of_batch(
    collector: Collector, source: Source, total: int, hint: Tensor | None
) -> tuple[Pairs, Tensor | None]:
    """As :meth:`.protocol.Backend.largest_of_batch`."""
    for guess in _guesses(collector, source, total, hint):
        collected = collector.reaching(source, guess, total)
        if len(collected) >= total:
            break
    chosen = collected.keep(collector.mask_of_largest(collected.value, total))
    return chosen, torch.tensor(_next_guess(collector, chosen.value)) if total else None


def _guesses(collector: Collector, source: Source, total: int, hint: Tensor | None) -> Iterator[float]:
    """Thresholds to try, until one lets enough pairs through; the last lets all."""
    last = torch.inf if hint is None else float(hint)
    if not isfinite(last):  # there was no batch before this one
        last = torch.inf
    if total:
        sample, share = _sample(source)
        for margin in SAMPLE_MARGINS:
            rank = int(margin * total * share) + 1
            if rank <= sample.numel():
                yield min(last, collector.kth_largest(sample, rank))
    yield -torch.inf


def _sample(source: Source) -> tuple[Tensor, float]:
    """Some pre-activations, and which share of all they are: spread over rows and latents, or the first
    block's.
    """
    if not isinstance(source, Encoder):
        first = next(source.blocks())[1].clone()
        return first, first.shape[0] / source.num_rows
    x, W, b = source.x_centered, source.W_enc, source.b_enc
    some = torch.arange(0, len(W), -(-len(W) // SAMPLE_LATENTS), device=W.device)
    rows = torch.linspace(0, len(x) - 1, min(len(x), SAMPLE_ROWS), device=W.device).long()
    sample = matmul(x[rows], W[some].T).add_(b[some])
    return sample, len(rows) / len(x) * len(some) / len(W)


def _next_guess(collector: Collector, chosen: Tensor) -> float:
    """Where about ``MARGIN`` times as many as the ``chosen`` values [n] would pass: as far below the least of
    them as that one is below the (n / ``MARGIN``)-th.

    From the chosen values only, which are exact: a guess from all that were collected would carry the
    sample's rounding, and with it the memory addresses of one process, into the checkpoint.
    """
    least = float(chosen.min())
    return least - (collector.kth_largest(chosen, max(1, int(chosen.numel() / MARGIN))) - least)
