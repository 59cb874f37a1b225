"""Collects what can be seen of every latent of an SAE, from its stored codes and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...distributed.group import ALONE, Group
from ...train import SAE
from ...train.sae_hooks import decoded_hooks
from .candidates import ActivationHistograms, SmallestPerLatent, draw_priorities
from .codes import StoredCodes
from .contexts import DecodeToken, choose_contexts, decode_tokens, group_tokens, read_windows
from .logits import Unembedding, find_logit_effects
from .passages import Passages
from .relations import find_coactive, find_nearest
from .table import Latents, LatentsInfo

MLP_IN = "mlp_in."  # what the MLP of a block reads: the stream after a norm
NO_MODEL = "No logit effects: the language model was not at hand."
LATENT_DEFINITIONS = {
    "contexts": (
        "Top contexts: where the latent is most active, at most one of each document (of each stretch of "
        "text if there are few documents). Percentile contexts: from each fifth of its activations by size, "
        "of a uniform sample of {num_sampled} of them; documents that are not shown yet come first."
    ),
    "coactive": (
        "Latents that fire on the rows on which this one fires, by the Jaccard index; the share is that of a "
        "uniform sample of {num_sampled} of the latent's activations."
    ),
    "nearest": "The largest cosines between decoder rows.",
}


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """How much is kept of each latent.

    Attributes:
        num_contexts: top contexts; ``per_fifth`` contexts of each fifth of the activations.
        num_sampled: activations in the uniform sample.
        radius: tokens on each side of a context's own.
        seed: draws the sample.
    """

    num_contexts: int
    per_fifth: int
    num_sampled: int
    radius: int
    seed: int


@torch.no_grad()
def collect_latents(
    sae: SAE,
    codes: StoredCodes,
    passages: Passages,
    settings: CollectSettings,
    *,
    name: str,
    rows: Mapping[str, int],
    fingerprint: str,
    directions: "Directions",
    decode_token: DecodeToken,
) -> Latents:
    """Collect what is known of all latents. Memory is a few hundred numbers for each latent.

    Args:
        codes: of the rows; their tokens are in ``passages``.
        rows: how many rows of each split there are.
        directions: what the decoder's rows say (:func:`compare_directions`).
    """
    group_L = group_tokens(passages, settings.num_contexts, settings.radius)
    top = SmallestPerLatent(codes.num_latents, settings.num_contexts, np.dtype(np.float32), group=group_L)
    sample = SmallestPerLatent(codes.num_latents, settings.num_sampled, np.dtype(np.uint64))
    histograms = ActivationHistograms(codes.num_latents)
    for block in codes.blocks():
        latent, size = block.latent.astype(np.int64), np.abs(block.value)
        offset = np.repeat(block.offset, block.counts)
        histograms.update(latent, size)
        top.update(latent, -size, offset)
        sample.update(latent, draw_priorities(latent, offset, settings.seed), offset)
    row_L = codes.row_of_offset()

    def size_of(latent: NDArray[np.int64], offset: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.abs(codes.at(row_L[offset], latent))

    contexts = choose_contexts(top, sample, size_of, group_L, settings.per_fifth)
    windows = read_windows(contexts, passages, codes, settings.radius)
    coactive, coactive_share = find_coactive(codes, sample.offset, histograms.fires)
    logits = directions.logits
    shown = [logits[name].ravel() for name in ("promoted", "suppressed") if name in logits]
    ids = np.unique(np.concatenate([passages.ids, *shown]))
    texts = decode_tokens(ids.tolist(), decode_token)
    return Latents(
        info=LatentsInfo(
            name=name,
            hook=sae.cfg.hook,
            num_latents=codes.num_latents,
            num_rows=codes.num_rows,
            rows=dict(rows),
            radius=settings.radius,
            cache=fingerprint,
            context=passages.context,
            logits=directions.note,
            definitions={
                key: text.format(num_sampled=settings.num_sampled) for key, text in LATENT_DEFINITIONS.items()
            },
        ),
        fires=histograms.fires,
        largest=histograms.largest,
        mean=(histograms.sum / histograms.fires.clip(min=1)).astype(np.float32),
        histogram=histograms.counts.astype(np.int32),
        histogram_end=np.where(histograms.fires > 0, np.ldexp(1.0, histograms.exponent), 0).astype(
            np.float32
        ),
        context_ptr=contexts.ptr,
        context_token=contexts.offset,
        context_fifth=contexts.fifth,
        context_percentile=contexts.percentile,
        activation_ptr=windows.ptr,
        activation_distance=windows.distance,
        activation_value=windows.value,
        nearest=directions.nearest,
        nearest_cosine=directions.nearest_cosine,
        coactive=coactive,
        coactive_share=coactive_share,
        text=passages.ids,
        text_measured=(row_L >= 0).astype(np.uint8),
        passage_ptr=passages.ptr,
        passage_sequence=passages.sequence,
        passage_position=passages.position,
        passage_document=passages.document,
        vocabulary=ids.astype(np.int32),
        vocabulary_ptr=np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64),
        vocabulary_utf8=np.frombuffer(b"".join(texts), dtype=np.uint8),
        **logits,  # type: ignore[arg-type]  # arrays by name
    )


@dataclass(frozen=True, kw_only=True)
class Directions:
    """What the rows of the decoder say of all latents, without any activation.

    Attributes:
        nearest, nearest_cosine: [F, N], as in README.md.
        logits: the arrays of logit effects; none where ``note`` says why.
        note: how logit effects were computed, or why not.
    """

    nearest: NDArray[np.int32]
    nearest_cosine: NDArray[np.float32]
    logits: Mapping[str, NDArray[np.generic]]
    note: str


@torch.no_grad()
def compare_directions(
    sae: SAE, unembedding: Unembedding | None, group: Group = ALONE, owner: int = 0
) -> Directions | None:
    """Find the latents nearest to each, and logit effects; without an ``unembedding`` those are left out.

    The processes of ``group`` share the latents; those other than ``owner`` get None.
    """
    nearest = find_nearest(sae.W_dec, group=group)
    note, effects = _note_logits(sae, unembedding), {}
    if unembedding is not None and note is None:
        effects = find_logit_effects(sae.W_dec, unembedding, group=group)
        centered = " Directions are centered first, as a layer norm does." if unembedding.centers else ""
        note = (
            f"Unit decoder direction times the weight of {unembedding.norm} times the unembedding.{centered} "
            "Direct effect only, without the norm's scale and biases."
        )
    whole = {name: _collect_array(array, group, owner) for name, array in {**nearest, **effects}.items()}
    if group.rank != owner:
        return None
    logits = {name: whole[name] for name in effects}
    return Directions(
        nearest=whole["nearest"], nearest_cosine=whole["nearest_cosine"], logits=logits, note=note or ""
    )


def _collect_array(array: NDArray[Any], group: Group, owner: int) -> NDArray[Any]:
    """In process ``owner`` the rows of all processes."""
    if group.size == 1:
        return array
    return np.concatenate(
        [part.numpy() for part in group.collect_rows(torch.from_numpy(array), owner)] or [array]
    )


def _note_logits(sae: SAE, unembedding: Unembedding | None) -> str | None:
    """Why there are no logit effects; None where there are."""
    if unembedding is None:
        return NO_MODEL
    width = unembedding.weight.shape[1]
    if sae.cfg.hooks is not None:
        return f"No logit effects: a {sae.cfg.shape}'s directions are of several hooks side by side."
    (decoded,) = decoded_hooks(sae.cfg)
    if decoded.d_model != width:
        return (
            f"No logit effects: the hook has width {decoded.d_model}, and the unembedding reads a residual "
            f"stream of width {width}."
        )
    if decoded.hook.startswith(MLP_IN):
        return (
            f"No logit effects: {decoded.hook} is behind a norm, and its directions are not those of the "
            "residual stream."
        )
    return None
