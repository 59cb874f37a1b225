"""A bundle for Neuronpedia's bulk import: what every latent does, from a folder of latents of ``evaluate``.

``<model>/<layer>-<set>/`` holds ``release.jsonl``, ``model.jsonl``, ``sourceset.jsonl`` and ``source.jsonl``,
and in ``features/``, ``activations/`` and ``explanations/`` the files ``batch-<n>.jsonl.gz``: one line for
each latent, for each of its contexts, and for each latent that a judge explained. Written after SAEDashboard
(neuronpedia_export.py), with its names of fields.
What a folder of latents does not hold is left empty: the histogram of logits, alignments with neurons, and
correlations. Legend: F latents.
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import SaecacheError, UsageError
from ...common.printable import is_name_of_file
from ...store.durable import write_bytes
from ..latents.table import Latents
from ..results import Interpretation
from .explanations import explanation_lines
from .metadata import Provenance
from .neuronpedia_lines import context_lines, feature_line, identifier_of

LATENTS_PER_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class NeuronpediaNames:
    """What Neuronpedia calls things. ``creator_id`` is the uploader's account there.

    ``explanation_type`` and ``explanation_model`` are names that its tables of ways to explain and of models
    hold; None where they hold none.

    Raises:
        UsageError: ``model_id`` or ``source_set`` cannot be the name of a folder.
    """

    model_id: str
    source_set: str
    creator: str
    creator_id: str
    release: str
    description: str
    explanation_type: str | None = None
    explanation_model: str | None = None

    def __post_init__(self) -> None:
        for name in ("model_id", "source_set"):  # folders of the bundle are called so
            text = getattr(self, name)
            if not is_name_of_file(text):
                raise UsageError(
                    f"{name}={text!r:.80} cannot be the name of a folder: expected a name as Neuronpedia "
                    "has them, as gpt2-small, without / and \\"
                )


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
        author, mine = {"authorId": names.creator_id}, {**common, "creatorId": names.creator_id}
        activations = [mine | line for latent in block for line in context_lines(latents, latent)]
        features = [mine | feature_line(latents, latent, names.source_set) for latent in block]
        lines = explanation_lines(interpretation, block, names.explanation_type, names.explanation_model)
        explanations = [
            {"id": identifier_of(latents, one["index"], "explanation"), **common, **author, **one}
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
