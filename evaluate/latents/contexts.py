"""Which contexts of each latent are shown, and what the latent does in them.

Top contexts: where the latent is most active, at most one of each document. Percentile contexts: from each
fifth of its activations, by size, of a uniform sample of them; the top alone would show what a latent does on
a few rows of thousands. Documents that are not shown yet come first.
Legend: F latents, C candidates of a latent, N contexts, L tokens of the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .candidates import SmallestPerLatent, rank_within_groups
from .codes import StoredCodes
from .passages import Passages
from .table import EMPTY, NUM_FIFTHS, TOP

DecodeToken = Callable[[int], str]
Ints = NDArray[np.int64]

MIN_DOCUMENTS = 4  # for each top context; with fewer documents a stretch of text takes their place
_LATENTS_AT_ONCE = 1024


def sample_latents(density_F: Tensor, num_latents: int, seed: int) -> list[int]:
    """Choose alive latents, densest first: the densest, and one from each of ``num_latents`` equal rank
    groups.

    If no more than that are alive, all of them are chosen.
    """
    density = density_F.numpy()
    by_rank = np.argsort(-density, kind="stable")[: int((density > 0).sum())]
    if num_latents == 0 or len(by_rank) == 0:
        return []
    if len(by_rank) <= num_latents + 1:
        return [int(latent) for latent in by_rank]
    random = np.random.default_rng(seed)
    groups = np.array_split(np.arange(1, len(by_rank)), num_latents)
    ranks = [0, *(int(random.choice(group)) for group in groups)]
    return [int(by_rank[rank]) for rank in ranks]


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """The contexts of all latents, those of one latent together: the top ones, then from the highest fifth to
    the lowest.

    Attributes:
        ptr: int64 [F + 1]; the contexts of latent ``f`` are ``ptr[f]:ptr[f + 1]``.
        offset: int32 [N], the token for which the context was chosen.
        fifth: int8 [N]; ``TOP``, or 0 (the smallest activations) to 4.
        percentile: float32 [N], of the activation among those of its latent, as the sample has them; -1 for
            top contexts.
    """

    ptr: Ints
    offset: NDArray[np.int32]
    fifth: NDArray[np.int8]
    percentile: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class WindowActivations:
    """The activations that are not 0 in the windows of contexts.

    Attributes:
        ptr: int64 [N + 1], the entries of each context.
        distance: int16, of the token from the one that the context was chosen for.
        value: float32.
    """

    ptr: Ints
    distance: NDArray[np.int16]
    value: NDArray[np.float32]


def group_tokens(passages: Passages, num_contexts: int, radius: int) -> NDArray[np.int64]:
    """The group of each token of the text, of which at most one top context is taken: int64 [L].

    A group is a document. Of a text with too few of them (:data:`MIN_DOCUMENTS` for each context) it is a
    stretch of a passage as long as a window.
    """
    _, group = np.unique(passages.document, return_inverse=True)
    group_L = np.repeat(group, np.diff(passages.ptr)).astype(np.int64)
    if len(group) and group.max() + 1 >= MIN_DOCUMENTS * num_contexts:
        return group_L
    within = np.arange(len(passages)) - np.repeat(passages.ptr[:-1], np.diff(passages.ptr))
    stretches = -(-np.diff(passages.ptr) // (2 * radius + 1))
    before = np.repeat(np.cumsum(stretches) - stretches, np.diff(passages.ptr))
    return before + within // (2 * radius + 1)


def choose_contexts(
    top: SmallestPerLatent,
    sample: SmallestPerLatent,
    size_of: Callable[[Ints, Ints], NDArray[np.float32]],
    group_L: Ints,
    per_fifth: int,
) -> Contexts:
    """Choose the contexts of all latents.

    Args:
        top: the largest activations of each latent.
        sample: a uniform sample of its activations; its keys order them at random.
        size_of: latents [n], offsets [n] -> sizes [n] of the activations.
        group_L: the groups of tokens (:func:`group_tokens`).
        per_fifth: so many contexts of each fifth of the activations, as far as there are any.
    """
    parts = []
    for start in range(0, len(top.offset), _LATENTS_AT_ONCE):
        block = slice(start, start + _LATENTS_AT_ONCE)
        latent, place = np.nonzero(top.offset[block] != EMPTY)
        offset = top.offset[block][latent, place].astype(np.int64)
        none = np.full(len(latent), TOP, dtype=np.float32)
        parts.append((latent + start, offset, none.astype(np.int64), none))
        parts.append(_from_fifths(start, top.offset[block], sample, size_of, group_L, per_fifth))
    latent, offset, fifth, percentile = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((np.arange(len(latent)), np.where(fifth == TOP, -NUM_FIFTHS, -fifth), latent))
    return Contexts(
        ptr=np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=len(top.offset)))]).astype(np.int64),
        offset=offset[order].astype(np.int32),
        fifth=fifth[order].astype(np.int8),
        percentile=percentile[order].astype(np.float32),
    )


def _from_fifths(
    start: int,
    top_offset: NDArray[np.int32],
    sample: SmallestPerLatent,
    size_of: Callable[[Ints, Ints], NDArray[np.float32]],
    group_L: Ints,
    per_fifth: int,
) -> tuple[Ints, Ints, Ints, NDArray[np.float32]]:
    """The percentile contexts of the latents from ``start`` on: latents, offsets, fifths, percentiles."""
    sampled = sample.offset[start : start + len(top_offset)]
    latent, draw = np.nonzero(sampled != EMPTY)
    offset = sampled[latent, draw].astype(np.int64)
    order = np.lexsort((offset, size_of(latent + start, offset), latent))
    rank = np.empty(len(latent), dtype=np.int64)
    rank[order] = rank_within_groups(latent[order])
    share = (rank + 0.5) / np.bincount(latent, minlength=len(sampled))[latent]
    fifth = np.minimum((share * NUM_FIFTHS).astype(np.int64), NUM_FIFTHS - 1)
    # Not again what is among the top, and documents that were drawn before only if there are no others.
    shown = top_offset[latent]
    again = (shown == offset[:, None]).any(1)
    group = group_L[offset]
    known = (np.where(shown == EMPTY, -1, group_L[shown]) == group[:, None]).any(1)
    latent, draw, offset, fifth, share, group, known = (
        values[~again] for values in (latent, draw, offset, fifth, share, group, known)
    )
    order = np.lexsort((draw, group, latent))
    known[order] |= rank_within_groups(latent[order] * (int(group_L.max(initial=0)) + 1) + group[order]) > 0
    order = np.lexsort((draw, known, -fifth, latent))
    chosen = order[rank_within_groups((latent * NUM_FIFTHS + fifth)[order]) < per_fifth]
    return latent[chosen] + start, offset[chosen], fifth[chosen], (100 * share[chosen]).astype(np.float32)


def read_windows(
    contexts: Contexts, passages: Passages, codes: StoredCodes, radius: int
) -> WindowActivations:
    """Look up the latent's activation on every token of its contexts."""
    row_L = codes.row_of_offset()
    latent_N = np.repeat(np.arange(len(contexts.ptr) - 1), np.diff(contexts.ptr))
    counts, distances, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int16)], [np.zeros(0, np.float32)]
    step = max(1, (1 << 21) // (2 * radius + 1))
    for start in range(0, len(latent_N), step):
        offset = contexts.offset[start : start + step].astype(np.int64)
        first, end = passages.window(offset, radius)
        token = first[:, None] + np.arange(int((end - first).max()))
        inside = token < end[:, None]
        context, place = np.nonzero(inside)
        token = token[context, place]
        found = codes.at(row_L[token], latent_N[start : start + step][context])
        active = np.flatnonzero(found)
        counts.append(np.bincount(context[active], minlength=len(offset)))
        distances.append((token[active] - offset[context[active]]).astype(np.int16))
        values.append(found[active])
    return WindowActivations(
        ptr=np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
        distance=np.concatenate(distances),
        value=np.concatenate(values),
    )


def decode_tokens(ids: Sequence[int], decode_token: DecodeToken) -> list[bytes]:
    """The text of each token in UTF-8; a tokenizer may give half surrogates for half a character."""
    return [decode_token(int(token)).encode("utf-8", "replace") for token in ids]
