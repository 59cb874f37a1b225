"""A bundle for Neuronpedia: every latent with its density, contexts, logit effects and neighbours."""

import json
from pathlib import Path

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import run
from saecache.evaluate.export import export_neuronpedia
from saecache.evaluate.export.neuronpedia import NeuronpediaNames, read_lines
from saecache.evaluate.latents.folder import read_latents
from saecache.store.reading.reader import ActivationCache
from saecache.train.variants.topk import TopK

from ..test_cli import saecache
from .conftest import LATENTS, make_sae

NAMES = NeuronpediaNames(
    model_id="tiny", source_set="tiny-res", creator="me", creator_id="c1", release="r", description="d"
)


@pytest.fixture(scope="module")
def measured(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An SAE's folder, and that of its latents."""
    folder = tmp_path_factory.mktemp("neuronpedia")
    make_sae(cache, "topk", TopK(num_latents=LATENTS, k=6)).save(folder / "topk" / "sae")
    settings = {"device": "cpu", "show_progress": False, "context_radius": 5}
    run([folder / "topk" / "sae"], cache, out=folder / "results.json", decode_token="<{}>".format, **settings)
    return folder / "topk" / "sae", folder / "results.latents" / "topk"


def test_every_latent_and_context_is_there(
    measured: tuple[Path, Path], cache: ActivationCache, tmp_path: Path
) -> None:
    sae_dir, latents_dir = measured
    result = export_neuronpedia(sae_dir, tmp_path / "out", latents=latents_dir, names=NAMES, cache=cache)
    place = tmp_path / "out" / "tiny" / "0-tiny-res"
    assert sorted(path.name for path in place.iterdir()) == [
        "activations",
        "features",
        "model.jsonl",
        "release.jsonl",
        "source.jsonl",
        "sourceset.jsonl",
    ]
    source = json.loads((place / "source.jsonl").read_text())
    assert (source["id"], source["setName"], source["modelId"]) == ("0-tiny-res", "tiny-res", "tiny")
    latents = read_latents(latents_dir)
    features = read_lines(place / "features" / "batch-0.jsonl.gz")
    activations = read_lines(place / "activations" / "batch-0.jsonl.gz")
    assert len(features) == LATENTS == result.facts["latents"]
    assert len(activations) == len(latents.context_token) == result.facts["contexts"]
    for latent, row in enumerate(features):
        assert row["index"] == str(latent)
        assert row["frac_nonzero"] == pytest.approx(latents.fires[latent] / latents.info.num_rows, rel=1e-4)
        assert row["maxActApprox"] == pytest.approx(latents.largest[latent], rel=1e-4)
        assert sum(row["freq_hist_data_bar_heights"]) == latents.fires[latent]
        assert row["topkCosSimIndices"] == latents.nearest[latent].tolist()
    for row in activations:
        assert row["maxValue"] == max(row["values"]) and len(row["values"]) == len(row["tokens"]) <= 11
        assert row["values"][row["qualifyingTokenIndex"]] != 0
        assert (row["binMin"] == -1) == (row["binContains"] == -1)
        assert row["binMin"] <= row["binMax"]
    top = next(row for row in activations if row["binMin"] == -1)
    latent = int(top["index"])
    assert top["maxValue"] == pytest.approx(latents.largest[latent], rel=1e-4)
    assert (
        top["tokens"][top["qualifyingTokenIndex"]]
        == f"<{int(latents.text[latents.context_token[latents.context_ptr[latent]]])}>"
    )


def test_fifths_hold_their_contexts(measured: tuple[Path, Path], tmp_path: Path) -> None:
    sae_dir, latents_dir = measured
    export_neuronpedia(sae_dir, tmp_path / "out", latents=latents_dir, names=NAMES)
    rows = read_lines(tmp_path / "out" / "tiny" / "0-tiny-res" / "activations" / "batch-0.jsonl.gz")
    found = [(abs(row["values"][row["qualifyingTokenIndex"]]), row) for row in rows if row["binMin"] != -1]
    width = [float(end) / 64 for end in read_latents(latents_dir).histogram_end]
    inside = [
        row["binMin"] - 3 * width[int(row["index"])] <= value <= row["binMax"] + 3 * width[int(row["index"])]
        for value, row in found
    ]
    assert len(found) > 50 and np.mean(inside) > 0.9  # a sample's fifths are not those of all activations


def test_bad_input_is_refused(measured: tuple[Path, Path], cache: ActivationCache, tmp_path: Path) -> None:
    sae_dir, latents_dir = measured
    make_sae(cache, "other", TopK(num_latents=LATENTS, k=6), hook="resid_post.1").save(tmp_path / "other")
    with pytest.raises(UsageError, match="give the latents of this SAE"):
        export_neuronpedia(tmp_path / "other", tmp_path / "out", latents=latents_dir, names=NAMES)
    arguments = ["export", sae_dir, "--format", "neuronpedia", "--out", tmp_path / "out"]
    refused = saecache(*arguments)
    assert refused.returncode == 2
    assert "needs --latents, --model-id, --creator, --creator-id" in refused.stderr
    options = ["--latents", latents_dir, "--model-id", "tiny", "--creator", "me", "--creator-id", "c1"]
    done = saecache(*arguments, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == "tiny/0-topk"
    wrong = saecache("export", sae_dir, "--format", "saelens", "--out", tmp_path / "b", "--creator", "me")
    assert wrong.returncode == 2 and "--creator has no effect with --format saelens" in wrong.stderr
