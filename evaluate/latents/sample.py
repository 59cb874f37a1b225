"""The latents that ``results.json`` shows: a few of the folder of latents, with all their contexts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..results import Context, Histogram, LatentResult
from .rows import LatentRows
from .table import TOP, Latents


def describe_latents(
    latents: Latents, rows: LatentRows, sampled: Sequence[int], density_F: NDArray[np.float64]
) -> list[LatentResult]:
    """Describe some latents: density, activations and top contexts. Negative codes count by size."""
    by_rank = np.argsort(-density_F, kind="stable")
    rank_of = np.empty(len(by_rank), dtype=np.int64)
    rank_of[by_rank] = np.arange(1, len(by_rank) + 1)
    return [
        LatentResult(
            index=latent,
            rank=int(rank_of[latent]),
            density=float(density_F[latent]),
            max_activation=_short(latents.largest[latent]),
            mean_activation=_short(latents.mean[latent]),
            activation_histogram=_histogram(latents, latent),
            contexts=[
                _describe_context(latents, rows, context)
                for context in range(latents.context_ptr[latent], latents.context_ptr[latent + 1])
                if latents.context_fifth[context] == TOP
            ],
        )
        for latent in sampled
    ]


def _describe_context(latents: Latents, rows: LatentRows, context: int) -> Context:
    """The tokens around one token, with the latent's activation where there is a row."""
    passages, radius = rows.passages, latents.info.radius
    token = np.asarray([latents.context_token[context]], dtype=np.int64)
    (first,), (end,) = passages.window(token, radius)
    passage = int(passages.passage_of(token)[0])
    position = int(passages.position[passage] + token[0] - passages.ptr[passage])
    own = slice(int(latents.activation_ptr[context]), int(latents.activation_ptr[context + 1]))
    value_W = np.zeros(end - first)
    value_W[token[0] + latents.activation_distance[own] - first] = latents.activation_value[own]
    ids = [int(i) for i in passages.ids[first:end]]
    return Context(
        row=int(rows.row_of(token)[0]),
        sequence=int(passages.sequence[passage]),
        position=position,
        document=int(passages.document[passage]),
        peak=int(token[0] - first),
        token_ids=ids,
        tokens=[latents.token_text(i) for i in ids],
        activations=[
            _short(value) if measured else None
            for value, measured in zip(value_W, latents.text_measured[first:end], strict=True)
        ],
    )


def _histogram(latents: Latents, latent: int) -> Histogram:
    counts = latents.histogram[latent]
    edges = np.linspace(0, latents.histogram_end[latent], len(counts) + 1)
    last = int(np.flatnonzero(counts).max(initial=0)) + 1
    return Histogram(edges=[_short(e) for e in edges[: last + 1]], counts=[int(c) for c in counts[:last]])


def _short(value: float) -> float:
    """``value`` with four significant digits: enough for a reader, at a third of the bytes."""
    return float(f"{value:.4g}")
