"""Recovery of known features: exact for SAEs that are the features, nothing for those that are not."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import UsageError
from saecache.evaluate import run as evaluate
from saecache.evaluate import synthetic, write_report
from saecache.evaluate.known_features import format_recovery
from saecache.evaluate.recovery import correlation, match_latents, measure_recovery
from saecache.evaluate.results import read_results
from saecache.evaluate.synthetic import GroundTruth, remake_ground_truth, write_synthetic
from saecache.store.reading.reader import ActivationCache, open_cache
from saecache.store.writing.writer import CacheWriter
from saecache.train import SAE, TrainConfig, load_sae, run
from saecache.train.sae_config import SAEConfig
from saecache.train.variants.batch_topk import BatchTopK

from .test_synthetic import small


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    path = tmp_path_factory.mktemp("synthetic") / "cache"
    write_synthetic(small(coefficients="half_normal", snr_db=40), path)
    return open_cache(path)


@pytest.fixture(scope="module")
def truth(cache: ActivationCache) -> GroundTruth:
    return remake_ground_truth(cache)


def sae_of(directions: torch.Tensor, threshold: float) -> SAE:
    """An SAE whose latents are ``directions``, for rows as they come from the simulation."""
    latents, width = directions.shape
    cfg = SAEConfig(
        kind="batch_topk", name="made", d_model=width, num_latents=latents, k=2, inference="threshold",
        hook="synthetic", normalization={"kind": "none", "d_model": width, "scale": 1.0},
        variant=BatchTopK(k=2), cache={}, training={},
    )  # fmt: skip
    tensors = {
        "W_enc": directions, "W_dec": directions.clone(), "b_enc": torch.zeros(latents),
        "b_dec": torch.zeros(width), "threshold": torch.tensor(threshold),
    }  # fmt: skip
    return SAE(cfg, tensors)


def test_matching_is_the_best_of_all_assignments() -> None:
    generator = torch.Generator().manual_seed(0)
    directions, W_dec = torch.randn(4, 6, generator=generator), torch.randn(5, 6, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    latent, similarity = match_latents(directions, 3 * W_dec)
    cosines = (directions @ (W_dec / W_dec.norm(dim=1, keepdim=True)).T).abs()
    best = max(
        sum(float(cosines[i, j]) for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(5), 4)
    )
    assert float(similarity.sum()) == pytest.approx(best, rel=1e-5)
    torch.testing.assert_close(similarity, cosines[torch.arange(4), latent])
    latent, similarity = match_latents(directions, W_dec[:2])
    assert sorted(latent.tolist())[:2] == [-1, -1] and int((similarity == 0).sum()) == 2


def test_an_sae_of_the_features_recovers_all(cache: ActivationCache, truth: GroundTruth) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    found = measure_recovery(sae_of(-truth.directions[order], 0.3), cache, truth)
    assert found.overall.recovered == 1 and found.overall.mean_similarity == pytest.approx(1)
    assert {name: b.num_features for name, b in found.buckets.items()} == {"rare": 12, "often": 8}
    found = measure_recovery(sae_of(truth.directions[order], 0.12), cache)
    assert found.fidelity is not None and found.fidelity > 0.5
    assert found.l0 > 0 and found.heldout_rows == cache.num_rows("heldout")


def test_a_bucket_that_is_missing_is_seen(cache: ActivationCache, truth: GroundTruth) -> None:
    others = torch.linalg.qr(truth.directions[truth.bucket == 0][:4].T, mode="complete").Q.T[4:]
    found = measure_recovery(
        sae_of(torch.cat([truth.directions[truth.bucket == 0], others]), 0.3), cache, truth
    )
    assert found.buckets["rare"].recovered == 1
    assert found.buckets["often"].recovered < 0.7
    wanted = (12 * 1 + 8 * found.buckets["often"].recovered) / 20
    assert found.overall.recovered == pytest.approx(wanted)


def test_fidelity_is_pearsons() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(50, generator=generator)
    b = a + 0.3 * torch.rand(50, generator=generator)
    wanted = float(((a - a.mean()) * (b - b.mean())).mean() / (a.std(correction=0) * b.std(correction=0)))
    assert correlation(a, b) == pytest.approx(wanted, rel=1e-5)
    assert correlation(a[:1], b[:1]) is None and correlation(torch.ones(5), b[:5]) is None
    assert correlation(torch.full((12,), 0.02), b[:12]) is None  # whose mean is not 0.02 in float32


def test_training_recovers_features_that_a_random_dictionary_does_not(
    cache: ActivationCache, truth: GroundTruth, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "variants": [{"kind": "batch_topk", "k": 2, "threshold": {"momentum": 0.9}}],
        "num_latents": 32, "batch_rows": 512, "steps": 400, "normalization": "scale",
        "optimizer": {"learning_rate": 0.01}, "log": {"every_steps": 200, "progress": False},
    }  # fmt: skip
    (folder,) = run(TrainConfig.model_validate(settings), cache, tmp_path / "run").saes.values()
    trained = measure_recovery(load_sae(folder), cache, truth)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(32, 16, generator=generator)
    untrained = measure_recovery(sae_of(random / random.norm(dim=1, keepdim=True), 0.3), cache, truth)
    assert trained.buckets["rare"].recovered > 0.8 > untrained.overall.recovered
    assert trained.fvu < 0.3


@pytest.fixture(scope="module")
def saved(cache: ActivationCache, truth: GroundTruth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an SAE that has found all features but one, as if it had been trained on the cache."""
    folder = tmp_path_factory.mktemp("made") / "sae"
    sae = sae_of(truth.directions[:-1], 0.12)
    own = {"fingerprint": cache.fingerprint}
    SAE(sae.cfg.model_copy(update={"cache": own}), dict(sae.named_buffers())).save(folder)
    return folder


def test_an_evaluation_says_what_is_recovered(
    cache: ActivationCache, truth: GroundTruth, saved: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    arguments = ["evaluate", str(saved), "--cache", str(cache.path), "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (found,) = (sae.recovery for sae in read_results(out).saes)
    alone = measure_recovery(load_sae(saved), cache, truth)
    assert found is not None and found.overall.recovered == pytest.approx(19 / 20)
    assert alone.fidelity is not None and alone.fidelity_log is not None
    assert (found.overall, found.buckets) == (alone.overall, alone.buckets)
    assert found.fidelity == pytest.approx(alone.fidelity)
    assert found.fidelity_log == pytest.approx(alone.fidelity_log)
    assert "known features: 20" in done.stdout
    assert re.search(r"SAE +recovered +of rare +of often +cosine", done.stdout)
    page = write_report([out], tmp_path / "report.html").read_text("utf-8")
    assert '<section id="known">' in page and ">of rare</th>" in page


def test_without_known_features_nothing_is_said_of_them(
    cache: ActivationCache, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "_probe", lambda truth: [9.0] * 8)  # as another torch would draw them
    results = evaluate([saved], cache, out=tmp_path / "a.json", show_progress=False)
    assert results.saes[0].recovery is None and format_recovery(results) == ""
    assert any("known features were recovered was not measured" in warning for warning in results.warnings)
    with CacheWriter(
        tmp_path / "plain", hooks={"synthetic": 16}, identity={}, heldout_fraction=0.1
    ) as writer:
        writer.write_rows({"synthetic": torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))})
    plain = open_cache(tmp_path / "plain")
    sae = load_sae(saved)
    cfg = sae.cfg.model_copy(update={"cache": {"fingerprint": plain.fingerprint}})
    SAE(cfg, dict(sae.named_buffers())).save(tmp_path / "sae")
    results = evaluate([tmp_path / "sae"], plain, out=tmp_path / "b.json", show_progress=False)
    assert results.saes[0].recovery is None and not any("known features" in one for one in results.warnings)
    page = write_report([tmp_path / "b.json"], tmp_path / "report.html").read_text("utf-8")
    assert '<section id="known">' not in page


def test_what_cannot_be_compared(cache: ActivationCache, truth: GroundTruth, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has width 8, .* has 16"):
        measure_recovery(sae_of(torch.eye(8), 0.3), cache, truth)
    with CacheWriter(tmp_path / "plain", hooks={"a": 16}, identity={}) as writer:
        writer.write_rows({"a": torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))})
    with pytest.raises(UsageError, match="has no known features: 'saecache synthetic' makes caches that do"):
        measure_recovery(sae_of(torch.eye(16), 0.3), open_cache(tmp_path / "plain"))
