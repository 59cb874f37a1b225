"""Select the largest pre-activations of a whole batch (BatchTopK, Mutual Choice) with a guessed threshold.

Pairs that reach the guess are collected block by block. If there are enough, the largest of them are the
result; otherwise the guess is lowered. A guess that is too low costs little; one that is too high costs
another pass over all pairs. The guess is the lower of two: one from the last batch, one from a sample.

Legend: B rows, F latents, P pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..pairs import Pairs
from .plain.products import matmul
from .sources import AnySource, Encoder

MARGIN = 1.25  # how many times ``total`` pairs should reach a guess
SAMPLE_ROWS, SAMPLE_LATENTS = 256, 2048  # of the sample from which thresholds are guessed
SAMPLE_MARGINS = (1.3, 4.0)  # the margin of the first guess, and of the next if that was too high


@dataclass(frozen=True, kw_only=True)
class Collector:
    """The operations that :func:`largest_of_batch` needs from a backend.

    Attributes:
        reaching: ``reaching(source, threshold, total)`` returns the pairs that reach the number
            ``threshold``; of more than ``total`` it may return only some, but always the largest ``total``.
        kth_largest: the k-th largest of values, float32 of any shape without NaN.
        mask_of_largest: a mask of the ``count`` largest of values [n], ties to the first: bool [n].
    """

    reaching: Callable[[Any, float, int], Pairs]
    kth_largest: Callable[[Tensor, int], float]
    mask_of_largest: Callable[[Tensor, int], Tensor]


def largest_of_batch(
    collector: Collector, source: AnySource, total: int, hint: Tensor | None
) -> tuple[Pairs, Tensor | None]:
    """See :meth:`.protocol.Backend.largest_of_batch`."""
    for guess in _guesses(collector, source, total, hint):
        collected = collector.reaching(source, guess, total)
        if len(collected) >= total:
            break
    chosen = collected.keep(collector.mask_of_largest(collected.value, total))
    return chosen, torch.tensor(next_guess(collector.kth_largest, chosen.value)) if total else None


def _guesses(collector: Collector, source: AnySource, total: int, hint: Tensor | None) -> Iterator[float]:
    """Yield thresholds to try until enough pairs reach one; the last one is minus infinity."""
    last = torch.inf if hint is None else float(hint)
    if not isfinite(last):  # this is the first batch
        last = torch.inf
    if total:
        values, share = sample(source)
        for margin in SAMPLE_MARGINS:
            rank = int(margin * total * share) + 1
            if rank <= values.numel():
                yield min(last, collector.kth_largest(values, rank))
    yield -torch.inf


def sample(source: AnySource, processes: int = 1) -> tuple[Tensor, float]:
    """Some pre-activations, spread over rows and latents or a whole block, and their share of all.

    ``processes`` that share the latents take as many together as one.
    """
    if not isinstance(source, Encoder):
        first = next(source.blocks())[1].clone()
        return first, first.shape[0] / source.num_rows
    x, W, b = source.x_centered, source.W_enc, source.b_enc
    if len(W) == 0:
        return x.new_empty(0), 1.0
    some = torch.arange(0, len(W), -(-len(W) * processes // SAMPLE_LATENTS), device=W.device)
    rows = torch.linspace(0, len(x) - 1, min(len(x), SAMPLE_ROWS), device=W.device).long()
    values = matmul(x[rows], W[some].T).add_(b[some])
    return values, len(rows) / len(x) * len(some) / len(W)


def next_guess(kth_largest: Callable[[Tensor, int], float], chosen: Tensor) -> float:
    """Guess the threshold that about ``MARGIN`` times as many as the ``chosen`` values [n] reach.

    It is as far below their least value as that is below the (n / ``MARGIN``)-th. Only the chosen values are
    used, which are exact: which others were collected depends on the sample's rounding, hence on memory
    addresses of this process, and that must not get into checkpoints.
    """
    least = float(chosen.min())
    return least - (kth_largest(chosen, max(1, int(chosen.numel() / MARGIN))) - least)
