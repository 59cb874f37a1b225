"""A bundle for Neuronpedia's bulk import: what every latent does, from a folder of latents of ``evaluate``.

``<model>/<layer>-<set>/`` holds ``release.jsonl``, ``model.jsonl``, ``sourceset.jsonl`` and ``source.jsonl``,
and in ``features/``, ``activations/`` and ``explanations/`` the files ``batch-<n>.jsonl.gz``: one line for
each latent, for each of its contexts, and for each latent that a judge explained. Written after SAEDashboard
(neuronpedia_export.py), with its names of fields.
What a folder of latents does not hold is left empty: the histogram of logits, alignments with neurons, and
correlations. Legend: F latents.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import SaecacheError, UsageError
from ...store.durable import write_bytes
from ..latents.table import BINS, NUM_FIFTHS, TOP, Latents
from ..results import Interpretation
from .explanations import explanation_lines
from .metadata import Provenance

LATENTS_PER_BATCH = 256
_DIGITS = 5  # significant ones, of numbers that are shown


@dataclass(frozen=True, kw_only=True)
class NeuronpediaNames:
    """What Neuronpedia calls things. ``creator_id`` is the uploader's account there.

    ``explanation_type`` and ``explanation_model`` are names that its tables of ways to explain and of models
    hold; None where they hold none.
    """

    model_id: str
    source_set: str
    creator: str
    creator_id: str
    release: str
    description: str
    explanation_type: str | None = None
    explanation_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class NeuronpediaBundle:
    """What was written, for people."""

    source: str
    latents: int
    contexts: int
    silent_latents: int
    explanations: int
    batches: int


def write_neuronpedia(
    latents: Latents,
    provenance: Provenance,
    names: NeuronpediaNames,
    folder: Path,
    *,
    interpretation: Interpretation | None = None,
    created: datetime | None = None,
) -> NeuronpediaBundle:
    """Write the bundle into the empty ``folder``, and read it back.

    Args:
        interpretation: what a judge says of the latents.
        created: the time that the bundle names; now if None.

    Raises:
        UsageError: the hook has no layer, which Neuronpedia names sources by.
        SaecacheError: what was read back is not what was written.
    """
    if provenance.layer is None:
        raise UsageError(
            f"hook {provenance.hook} has no layer, and Neuronpedia names sources by it: train on a named "
            "hook, as resid_post.6"
        )
    source_id = f"{provenance.layer}-{names.source_set}"
    place = folder / names.model_id / source_id
    for part in ("features", "activations"):
        (place / part).mkdir(parents=True)
    time = (created or datetime.now(UTC)).isoformat(timespec="seconds")
    for name, row in _descriptions(latents, provenance, names, source_id, time).items():
        write_bytes(place / f"{name}.jsonl", (json.dumps(row) + "\n").encode("utf-8"))
    contexts = explained = batches = 0
    for number, start in enumerate(range(0, latents.num_latents, LATENTS_PER_BATCH)):
        block = range(start, min(start + LATENTS_PER_BATCH, latents.num_latents))
        common = {"modelId": names.model_id, "layer": source_id, "createdAt": time}
        creator, author = {"creatorId": names.creator_id}, {"authorId": names.creator_id}
        activations = [{**common, **creator, **one} for latent in block for one in _contexts(latents, latent)]
        features = [{**common, **creator, **_feature(latents, latent, names.source_set)} for latent in block]
        lines = explanation_lines(interpretation, block, names.explanation_type, names.explanation_model)
        explanations = [
            {"id": _identifier(latents, one["index"], "explanation"), **common, **author, **one}
            for one in lines
        ]
        _write_lines(place / "features" / f"batch-{number}.jsonl.gz", features)
        _write_lines(place / "activations" / f"batch-{number}.jsonl.gz", activations)
        if explanations:
            (place / "explanations").mkdir(exist_ok=True)
            _write_lines(place / "explanations" / f"batch-{number}.jsonl.gz", explanations)
        contexts += len(activations)
        explained += len(explanations)
        batches += 1
    _check(latents, place, contexts, explained)
    return NeuronpediaBundle(
        source=f"{names.model_id}/{source_id}",
        latents=latents.num_latents,
        contexts=contexts,
        silent_latents=int((latents.fires == 0).sum()),
        explanations=explained,
        batches=batches,
    )


def _descriptions(
    latents: Latents, provenance: Provenance, names: NeuronpediaNames, source_id: str, time: str
) -> dict[str, dict[str, Any]]:
    """The one line of each of the four files about the whole."""
    creator = {"creatorId": names.creator_id, "createdAt": time}
    return {
        "release": {
            "name": names.release,
            "description": names.description,
            "descriptionShort": names.description,
            "creatorName": names.creator,
            "creatorNameShort": names.creator,
            "urls": [],
            "visibility": "PUBLIC",
            **creator,
        },
        "model": {
            "id": names.model_id,
            "displayName": names.model_id,
            "displayNameShort": names.model_id,
            "instruct": names.model_id.lower().endswith(("-it", "-instruct", "-chat")),
            "visibility": "PUBLIC",
            "updatedAt": time,
            **creator,
        },
        "sourceset": {
            "modelId": names.model_id,
            "name": names.source_set,
            "description": names.description,
            "creatorName": names.creator,
            "releaseName": names.release,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            **creator,
        },
        "source": {
            "id": source_id,
            "modelId": names.model_id,
            "setName": names.source_set,
            "dataset": provenance.dataset,
            "num_prompts": len(latents.passage_sequence),
            "num_tokens_in_prompt": provenance.context,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            "notes": f"Activations are in units of the SAE's normalized rows. {latents.info.logits}",
            **creator,
        },
    }


def _feature(latents: Latents, latent: int, source_set: str) -> dict[str, Any]:
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


def _contexts(latents: Latents, latent: int) -> Iterator[dict[str, Any]]:
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
            "id": _identifier(latents, latent, number),
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


def _identifier(latents: Latents, latent: int | str, of: int | str) -> str:
    """25 characters as Neuronpedia's identifiers have, the same for equal latents. ``of`` is the number of a
    context, or what else is identified.
    """
    text = f"{latents.info.sha256}/{latent}/{of}"
    return "c" + hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, gzip.compress(lines.encode("utf-8"), compresslevel=5, mtime=0))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of one ``.jsonl.gz`` of a bundle."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()]


def _check(latents: Latents, place: Path, contexts: int, explanations: int) -> None:
    """Make sure that every latent and context is there once, with its density and its largest activation,
    and every explanation.

    Raises:
        SaecacheError: it is not.
    """
    seen = 0
    identifiers: set[str] = set()
    for path in sorted(
        (place / "features").iterdir(), key=lambda path: int(path.name.split("-")[1].split(".")[0])
    ):
        for row in read_lines(path):
            fires = row["frac_nonzero"] * latents.info.num_rows
            if row["index"] != str(seen) or not np.isclose(fires, latents.fires[seen], rtol=1e-3, atol=1e-3):
                raise SaecacheError(
                    f"{path.name}: the line of latent {seen} is not its own: please report it"
                )
            seen += 1
        for row in read_lines(place / "activations" / path.name):
            identifiers.add(row["id"])
            values, tokens = row["values"], row["tokens"]
            if len(values) != len(tokens) or values[row["qualifyingTokenIndex"]] == 0:
                raise SaecacheError(f"{path.name}: context {row['id']} shows no activation: please report it")
    explained = [row for path in (place / "explanations").glob("*") for row in read_lines(path)]
    if len({row["index"] for row in explained}) != explanations or not all(
        row["description"] for row in explained
    ):
        raise SaecacheError(
            f"{len(explained)} explanations were read back, expected {explanations}: please report it"
        )
    if seen != latents.num_latents or len(identifiers) != contexts:
        raise SaecacheError(
            f"{seen} latents and {len(identifiers)} contexts were read back, expected {latents.num_latents} "
            f"and {contexts}: please report it"
        )


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
