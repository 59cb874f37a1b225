"""The lines of a bundle for Neuronpedia: of a latent, and of each of its contexts."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..latents.table import BINS, NUM_FIFTHS, TOP, Latents

_DIGITS = 5  # significant ones, of numbers that are shown


def feature_line(latents: Latents, latent: int, source_set: str) -> dict[str, Any]:
    """What a latent does: how often and how strongly it fires, its neighbours, and the tokens it promotes."""
    largest = float(latents.largest[latent])
    edges = np.linspace(0, float(latents.histogram_end[latent]), BINS + 1)
    used = max(1, int(np.searchsorted(edges, largest))) if largest else 0
    row: dict[str, Any] = {
        "index": str(latent),
        "sourceSetName": source_set,
        "maxActApprox": _short(largest),
        "hasVector": False,
        "vector": [],
        "frac_nonzero": _short(float(latents.fires[latent]) / latents.info.num_rows),
        "freq_hist_data_bar_heights": latents.histogram[latent, :used].tolist(),
        "freq_hist_data_bar_values": [_short(v) for v in (edges[:used] + edges[1 : used + 1]) / 2],
        "topkCosSimIndices": latents.nearest[latent].tolist(),
        "topkCosSimValues": [_short(v) for v in latents.nearest_cosine[latent]],
    }
    for side, name in (("pos", "promoted"), ("neg", "suppressed")):
        ids, effects = getattr(latents, name), getattr(latents, f"{name}_effect")
        row[f"{side}_str"] = [] if ids is None else [latents.token_text(int(i)) for i in ids[latent]]
        row[f"{side}_values"] = [] if ids is None else [_short(v) for v in effects[latent]]
    empty = ("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist")
    return row | {name: [] for name in (*empty, *_RELATIONS)}


_RELATIONS = [
    f"{of}_{what}"
    for of, whats in {
        "neuron_alignment": ("indices", "values", "l1"),
        "correlated_neurons": ("indices", "pearson", "l1"),
        "correlated_features": ("indices", "pearson", "l1"),
    }.items()
    for what in whats
]


def context_lines(latents: Latents, latent: int) -> Iterator[dict[str, Any]]:
    """The contexts of a latent: the top ones, then those of its fifths, from the largest activations down."""
    bounds = _fifths(latents, latent)
    for number in range(int(latents.context_ptr[latent]), int(latents.context_ptr[latent + 1])):
        token = int(latents.context_token[number])
        passage = int(np.searchsorted(latents.passage_ptr, token, side="right")) - 1
        first = max(int(latents.passage_ptr[passage]), token - latents.info.radius)
        end = min(int(latents.passage_ptr[passage + 1]), token + latents.info.radius + 1)
        own = slice(int(latents.activation_ptr[number]), int(latents.activation_ptr[number + 1]))
        values = np.zeros(end - first)
        values[latents.activation_distance[own].astype(np.int64) + token - first] = latents.activation_value[
            own
        ]
        fifth = int(latents.context_fifth[number])
        top = fifth == TOP
        shown = [_short(v) for v in values]
        yield {
            "id": identifier_of(latents, latent, number),
            "index": str(latent),
            "tokens": [latents.token_text(int(i)) for i in latents.text[first:end]],
            "values": shown,
            "maxValue": max(shown),
            "maxValueTokenIndex": int(np.argmax(values)),
            "minValue": min(shown),
            "qualifyingTokenIndex": token - first,
            "binMin": -1 if top else _short(bounds[fifth]),
            "binMax": _short(float(latents.largest[latent])) if top else _short(bounds[fifth + 1]),
            "binContains": -1 if top else 1 / NUM_FIFTHS,
            "dataIndex": None,
            "dataSource": None,
            "dfaValues": [],
            "lossValues": [],
        }


def _fifths(latents: Latents, latent: int) -> list[float]:
    """The sizes that cut a latent's activations into fifths, to the width of a bin of its histogram."""
    counts = latents.histogram[latent].astype(np.int64)
    ends = np.linspace(0, float(latents.histogram_end[latent]), BINS + 1)
    wanted = np.arange(1, NUM_FIFTHS) / NUM_FIFTHS * counts.sum()
    inner = ends[np.searchsorted(np.cumsum(counts), wanted) + 1]
    return [0.0, *inner.tolist(), float(latents.largest[latent])]


def identifier_of(latents: Latents, latent: int | str, of: int | str) -> str:
    """25 characters as Neuronpedia's identifiers have, the same for equal latents. ``of`` is the number of a
    context, or what else is identified.
    """
    text = f"{latents.info.sha256}/{latent}/{of}"
    return "c" + hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
