"""BatchTopK and Mutual Choice: the largest pre-activations of the whole batch.

Pairs that reach a guessed threshold are collected, block by block; when they are enough, the largest of them
are the answer, else the guess is lowered. A guess that is too low costs little and one that is too high a
second look at all pairs: it is the lower one of what the last batch and what some pairs of this one suggest.

Legend: B rows, F latents, P pairs.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from ..kernels.encode import Blocks, EncoderBlocks
from ..kernels.matmul import matmul
from ..pairs import Pairs
from .collect import collect
from .largest import kth_largest, mask_of_largest
from .pieces import Piece, assemble

HINT = "selection_hint"
MARGIN = 1.25  # pairs that a guess should let through, for each one wanted
SAMPLE_ROWS, SAMPLE_LATENTS = 256, 2048  # that guesses are taken from
SAMPLE_MARGINS = (1.3, 4.0)  # of the first guess, and of the one after a guess that was too high


def select_per_batch(
    blocks: Blocks,
    num_rows: int,
    num_latents: int,
    total: int,
    state: MutableMapping[str, Tensor] | None = None,
    allowed: Tensor | None = None,
) -> Pairs:
    """The ``total`` largest of all; the lowest (row, latent) first among equals. Negative ones too.

    From :func:`..kernels.encode_blocks`, "largest" is by the pre-activations that
    ``sddmm(pairs, x, W_enc) + b_enc`` gives, and these are the pairs' values, bit for bit; other blocks are
    taken as they are.

    Args:
        state: keeps a guess of the threshold under :data:`HINT` (float32 []), for the next batch. It changes
            the time, never the result.
        allowed: bool [F]; only these latents are chosen from (the candidate pool of Sampled-SAE). None: all.

    Raises:
        NonFiniteError: a pre-activation is NaN.
    """
    choices = num_rows * (num_latents if allowed is None else int(allowed.sum()))
    if not 0 <= total <= choices:
        raise ValueError(f"total must be from 0 to {choices}, the pairs of rows and latents, got {total}")
    for guess in _guesses(blocks, num_rows, total, state, allowed):
        threshold = torch.full((num_latents,), guess)
        expected = 2 * total / max(1, num_rows)
        pieces = collect(
            blocks, threshold, strict=False, allowed=allowed, most=total, expected_per_row=expected
        )
        if _count(pieces) >= total:
            break
    collected = assemble(pieces, num_latents)
    chosen = collected.keep(mask_of_largest(collected.value, total))
    if state is not None and total:
        guess = _next_guess(chosen.value)
        state[HINT] = torch.full_like(state[HINT], guess) if HINT in state else torch.tensor(guess)
    return chosen


def _count(pieces: Sequence[Piece]) -> int:
    return sum(piece.value.numel() for piece in pieces)


def _guesses(
    blocks: Blocks,
    num_rows: int,
    total: int,
    state: MutableMapping[str, Tensor] | None,
    allowed: Tensor | None,
) -> Iterator[float]:
    """Thresholds to try, until one lets enough pairs through; the last lets all."""
    hint = float(state[HINT]) if state is not None and HINT in state else torch.inf
    if not isfinite(hint):  # there was no batch before this one
        hint = torch.inf
    if total:
        sample, share = _sample(blocks, num_rows, allowed)
        for margin in SAMPLE_MARGINS:
            rank = int(margin * total * share) + 1
            if rank <= sample.numel():
                yield min(hint, kth_largest(sample, rank))
    yield -torch.inf


def _sample(blocks: Blocks, num_rows: int, allowed: Tensor | None) -> tuple[Tensor, float]:
    """Some pre-activations, and which share of all they are: spread over rows and latents, or the first
    block's.
    """
    if not isinstance(blocks, EncoderBlocks):
        first = next(blocks())[1]
        sample = first.clone() if allowed is None else first[:, allowed.to(first.device)]
        return sample, first.shape[0] / num_rows
    W, b = blocks.W_enc, blocks.b_enc
    latents = (
        torch.arange(W.shape[0], device=W.device)
        if allowed is None
        else allowed.nonzero().flatten().to(W.device)
    )
    some = latents[:: -(-len(latents) // SAMPLE_LATENTS)]
    rows = torch.linspace(0, num_rows - 1, min(num_rows, SAMPLE_ROWS), device=W.device).long()
    sample = matmul(blocks.x_centered[rows], W[some].T).add_(b[some])
    return sample, len(rows) / num_rows * len(some) / len(latents)


def _next_guess(chosen: Tensor) -> float:
    """Where about ``MARGIN`` times as many as the ``chosen`` values [n] would pass: as far below the least of
    them as that one is below the (n / ``MARGIN``)-th.

    From the chosen values only, which are exact: a guess from all that were collected would carry the
    sample's rounding, and with it the memory addresses of one process, into the checkpoint.
    """
    least = float(chosen.min())
    return least - (kth_largest(chosen, max(1, int(chosen.numel() / MARGIN))) - least)
