"""A bundle for Neuronpedia: every latent with its density, contexts, logit effects and neighbours."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import run
from saecache.evaluate.export import export_neuronpedia
from saecache.evaluate.export.neuronpedia import NeuronpediaNames, read_lines
from saecache.evaluate.latents.folder import read_latents
from saecache.evaluate.results import Interpretation, read_results, write_results
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


def judge_results(path: Path, out: Path, texts: dict[int, str | None]) -> None:
    """Write results as ``saecache interpret`` leaves them: each latent with its explanation and scores."""
    score = {
        "balanced_accuracy": 0.8765, "true_positive_rate": 1.0, "true_negative_rate": 0.7530, "strata": [],
        "answered": 40, "unanswered": 0, "interval": (0.8, 0.95),
    }  # fmt: skip
    shares = {"density": 0.1, "num_windows": 50}
    latents = [
        {"index": latent, "explanation": text, "detection": score if text else None, **shares}
        for latent, text in texts.items()
    ]
    nothing = dict.fromkeys(("detection", "fuzzing", "calibration"))
    counts = dict.fromkeys(("rows", "windows", "alive", "too_few_windows"), 1)
    interpretation = Interpretation.model_validate(
        {"judge": "judge-7b", "prompts_sha256": "", "settings": {}, "skipped": [], "unanswered": {}}
        | {"latents": latents, **nothing, **counts}
    )
    results = read_results(path)
    saes = [one.model_copy(update={"interpretation": interpretation}) for one in results.saes]
    write_results(results.model_copy(update={"saes": saes}), out)


def test_explanations_of_a_judge_are_lines_of_neuronpedias_table(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    """The required columns of its schema, and no name that its other tables might lack."""
    sae_dir, latents_dir = measured
    results = latents_dir.parent.with_suffix(".json")
    judge_results(results, tmp_path / "judged.json", {5: "names of\nanimals ", 90: "digits", 7: None, 8: " "})
    plain = export_neuronpedia(sae_dir, tmp_path / "plain", latents=latents_dir, names=NAMES)
    place = Path("tiny") / "0-tiny-res"
    assert plain.facts["explanations"] == 0
    assert not (tmp_path / "plain" / place / "explanations").exists()
    done = export_neuronpedia(
        sae_dir, tmp_path / "out", latents=latents_dir, names=NAMES, results=tmp_path / "judged.json"
    )
    rows = read_lines(tmp_path / "out" / place / "explanations" / "batch-0.jsonl.gz")
    assert done.facts["explanations"] == 2
    assert [(row["index"], row["description"]) for row in rows] == [
        ("5", "names of animals"),
        ("90", "digits"),
    ]
    features = read_lines(tmp_path / "out" / place / "features" / "batch-0.jsonl.gz")
    for row in rows:
        feature = features[int(row["index"])]
        assert (row["modelId"], row["layer"], row["authorId"]) == (feature["modelId"], feature["layer"], "c1")
        assert row["typeName"] is None and row["explanationModelName"] is None
        assert row["notes"] == (
            "explained by judge-7b (saecache interpret); detection 0.876, 95 % 0.800 to 0.950 (balanced "
            "accuracies)"
        )
        assert len(row["id"]) == 25 and row["createdAt"] == feature["createdAt"]
    assert len({row["id"] for row in rows}) == 2
    assert {frozenset(row) for row in rows} == {
        frozenset(rows[0])
    }  # its import takes the first line's columns


def test_explanations_come_from_the_results_beside_the_latents(
    measured: tuple[Path, Path], cache: ActivationCache, tmp_path: Path
) -> None:
    sae_dir, latents_dir = measured
    shutil.copytree(latents_dir.parent, tmp_path / "results.latents")
    judge_results(latents_dir.parent.with_suffix(".json"), tmp_path / "results.json", {5: "animals"})
    options = ["--model-id", "tiny", "--creator", "me", "--creator-id", "c1", "--json"]
    command = ["export", sae_dir, "--format", "neuronpedia", "--latents", tmp_path / "results.latents/topk"]
    names = ["--explanation-type", "np_max-act", "--explanation-model", "gpt-4o-mini"]
    done = saecache(*command, *options, *names, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["explanations"] == 1
    (row,) = read_lines(tmp_path / "out/tiny/0-topk/explanations/batch-0.jsonl.gz")
    assert (row["typeName"], row["explanationModelName"]) == ("np_max-act", "gpt-4o-mini")
    measured_only = latents_dir.parent.with_suffix(".json")
    with pytest.raises(UsageError, match="has no explanations of SAE topk"):
        export_neuronpedia(sae_dir, tmp_path / "a", latents=latents_dir, names=NAMES, results=measured_only)
    changed = make_sae(cache, "topk", TopK(num_latents=LATENTS, k=6))
    changed.b_dec.add_(1.0)
    changed.save(tmp_path / "changed")
    with pytest.raises(UsageError, match="was not measured on SAE topk with the weights that it has now"):
        export_neuronpedia(tmp_path / "changed", tmp_path / "a", latents=latents_dir, names=NAMES)


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


@pytest.mark.parametrize(
    "name", ["a/../../../../pwned", "..", ".", "/tmp", "a\\b", "", "x" * 300, "a\x1b[2J"]
)
@pytest.mark.parametrize("field", ["model_id", "source_set"])
def test_names_that_are_no_folder_are_refused(field: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"{field}=.* cannot be the name of a folder"):
        replace(NAMES, **{field: name})
