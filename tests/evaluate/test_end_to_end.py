"""The real chain on the built-in model and text: harvest, train, evaluate with the model, report."""

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from saecache.evaluate import run, write_report
from saecache.evaluate.language_model import Spliced, measure_language_model
from saecache.evaluate.results import read_results
from saecache.evaluate.sequences import choose_sequences
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest import run as harvest
from saecache.store import open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig
from saecache.train import run as train

HOOK = "resid_post.3"


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    return LanguageModel.load("builtin:demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    config = HarvestConfig.model_validate(
        {
            "model": {"name": "builtin:demo", "dtype": "float32"},
            "text": {"kind": "builtin"},
            "tokens": {"context": 64, "max_document_tokens": 300},
            "hooks": [HOOK],
            "num_tokens": 8000,
            "heldout_fraction": 0.2,
            "device": "cpu",
        }
    )
    return open_cache(harvest(config, tmp_path_factory.mktemp("real") / "cache").path)


@pytest.fixture(scope="module")
def real_run(real_cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig.model_validate(
        {
            "variants": [{"kind": "topk", "k": 16}, {"kind": "feature_choice", "k": 16}],
            "num_latents": 256,
            "batch_rows": 512,
            "epochs": 8,
            "optimizer": {"learning_rate": 3e-3},
            "log": {"every_steps": 10, "progress": False},
            "device": "cpu",
        }
    )
    return train(config, real_cache, tmp_path_factory.mktemp("runs") / "run").run_dir


def test_real_saes_of_a_real_model(real_run, real_cache, language_model, tmp_path) -> None:
    results = run(
        [real_run],
        real_cache,
        model=language_model,
        decode_token=lambda token: language_model.tokenizer.decode([token]),
        num_latents=4,
        show_progress=False,
    )
    for sae in results.saes:
        cost = sae.language_model
        assert cost is not None
        assert cost.activation_mismatch < 1e-3
        assert cost.num_tokens > 500
        assert cost.ce_clean < cost.ce_sae < cost.ce_zero
        assert cost.ce_clean < 0.7 * math.log(4096)  # the model has learned
        assert 0.3 < cost.ce_recovered < 1
        assert 0.3 < cost.kl_score < 1
        assert 0 < sae.normalized.fvu < 0.9
        assert 0 < sae.raw.fvu < 0.9
        text = "".join(sae.latents[0].contexts[0].tokens)
        assert len(text) > 10
        assert text.isprintable() or "\n" in text
    topk = next(sae for sae in results.saes if sae.kind == "topk")
    assert topk.codes.l0 == pytest.approx(16, abs=0.5)
    html = write_report([real_run], tmp_path / "report.html").read_text("utf-8")
    assert "builtin:demo" in html


def test_without_the_model_tokens_are_text(
    real_run, real_cache, language_model, tmp_path, monkeypatch
) -> None:
    from saecache.cli import app

    def load(*_args: object, **_options: object) -> None:
        raise AssertionError("no weights are needed")

    monkeypatch.setattr(LanguageModel, "load", load)
    out = tmp_path / "results.json"
    command = ["evaluate", str(real_run / "topk_k16" / "sae"), "--cache", str(real_cache.path), "--no-model"]
    result = CliRunner().invoke(app, [*command, "--out", str(out), "--set", "num_latents=2"])
    assert result.exit_code == 0, result.output
    contexts = [c for latent in read_results(out).saes[0].latents for c in latent.contexts]
    for context in contexts:
        assert context.tokens == [language_model.tokenizer.decode([i]) for i in context.token_ids]
    assert contexts and "shown as numbers" not in result.output


def test_identity_and_ablation_through_the_real_model(real_cache, language_model) -> None:
    sequences = choose_sequences(real_cache, "heldout", real_cache.num_rows("heldout"), 600, 0)
    found = measure_language_model(
        language_model,
        real_cache,
        [
            Spliced(name="identity", hook=HOOK, reconstruct=lambda x: x),
            Spliced(name="zero", hook=HOOK, reconstruct=torch.zeros_like),
        ],
        sequences,
        split="heldout",
        logit_bytes=2**25,
        show_progress=False,
    )
    assert found["identity"].ce_recovered == pytest.approx(1, abs=1e-6)
    assert found["identity"].kl_score == pytest.approx(1, abs=1e-6)
    assert found["zero"].ce_recovered == 0
    assert found["zero"].kl_score == 0


def test_probing_and_absorption_of_the_real_model(real_run, real_cache, tmp_path, monkeypatch) -> None:
    """Through the command, with texts that two words tell apart; the model is far too small to spell."""
    from saecache.cli import app
    from saecache.harvest.model import tokenizer

    words = tokenizer.list_vocabulary

    def few_words(*arguments: object) -> list[tuple[int, str]]:
        return words(*arguments)[:900]  # a fifth of the vocabulary is enough to see that it cannot

    monkeypatch.setattr(tokenizer, "list_vocabulary", few_words)
    lines = [
        {"text": f"{start} value{i}: return {i}", "label": start}
        for start in ("import", "class")
        for i in range(40)
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "results.json"
    command = ["evaluate", str(real_run / "topk_k16" / "sae"), "--cache", str(real_cache.path)]
    options = [
        "--probe",
        str(tmp_path / "texts.jsonl"),
        "--absorption",
        "--rule",
        "batch",
        "--ce-tokens",
        "200",
    ]
    result = CliRunner().invoke(app, [*command, *options, "--out", str(out), "--set", "num_latents=0"])
    assert result.exit_code == 0, result.output
    (sae,) = read_results(out).saes
    assert sae.rule == "batch"
    (probing,) = sae.probing
    assert probing.classes == ["class", "import"]
    assert probing.model_dense.accuracy > 0.9
    assert sae.absorption is not None
    assert sae.absorption.num_words > 300
    assert "does not know first letters well enough" in sae.absorption.refused
    for part in (
        "probe k=1",
        "latents selected by the rule of training",
        "no absorption: the model does not",
    ):
        assert part in result.stdout
