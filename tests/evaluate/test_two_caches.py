"""A crosscoder of a base and a tuned model: fidelity in each, and what is of one model alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import UsageError
from saecache.evaluate.report import write_report
from saecache.evaluate.results import read_results
from saecache.evaluate.runner import run as evaluate
from saecache.store import StorageConfig
from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig, load_sae
from saecache.train import run as train
from saecache.train.sae_hooks import split_by_hook

from .conftest import HOOK, SHORT_RUN, WIDTH, TinyModel, make_cache

TUNED_HOOK = f"tuned:{HOOK}"


class TunedModel(TinyModel):
    """The same model after its first block was changed; the text stays the base model's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0] = (
            self.layers[0] + torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)) / 4
        )

    def write_text(self, starts: np.ndarray) -> np.ndarray:
        return TinyModel().write_text(starts)


@pytest.fixture(scope="module")
def tuned(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    path = tmp_path_factory.mktemp("tuned") / "cache"
    storage = StorageConfig(chunk_rows=64)
    return make_cache(path, TunedModel(), heldout_fraction=0.4, storage=storage, name="tuned")


@pytest.fixture(scope="module")
def run(cache: ActivationCache, tuned: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig.model_validate(
        {
            "variants": [{"kind": "batch_topk", "k": 6, "name": "diff"}],
            "hook": [HOOK, TUNED_HOOK],
            "beside": {"tuned": str(tuned.path)},
            "crosscoder": True,
            **SHORT_RUN,
        }
    )
    return train(config, cache, tmp_path_factory.mktemp("run") / "run").run_dir


def test_each_model_has_its_figures(
    run: Path, cache: ActivationCache, tuned: ActivationCache, model: TinyModel, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    beside = {"tuned": str(tuned.path)}
    results = evaluate([run], cache, beside=beside, model=model, out=out, show_progress=False, ce_tokens=300)
    (result,) = results.saes
    sae = load_sae(run / "diff" / "sae")
    rows = np.arange(cache.num_rows("heldout"))
    raw = torch.cat([c.rows(HOOK, rows, "heldout", "none") for c in (cache, tuned)], dim=1)
    back, wanted = (split_by_hook(sae.cfg, x) for x in (sae(raw, input="raw"), raw))
    first, second = (part.norm(dim=1) for part in sae.W_dec.split(WIDTH, dim=1))
    alive = (sae.encode(raw, input="raw") != 0).any(0)
    for one, share in zip(result.hooks, (first / (first + second), second / (first + second)), strict=True):
        x, error = wanted[one.hook].double(), (back[one.hook] - wanted[one.hook]).double()
        fvu = float(error.square().sum() / (x - x.mean(0)).square().sum())
        assert one.raw.fvu == pytest.approx(fvu, rel=1e-4) and fvu < 0.5
        assert one.mean_decoder_share == pytest.approx(float(share[alive].mean()), rel=1e-5)
        assert sum(one.decoder_shares.counts) == result.codes.alive
    assert [one.hook for one in result.hooks] == [HOOK, TUNED_HOOK]
    base_cost, tuned_cost = (one.language_model for one in result.hooks)
    assert base_cost is not None and base_cost.ce_sae < base_cost.ce_zero
    assert tuned_cost is None
    assert any("CE and KL were not measured at hooks of tuned" in warning for warning in results.warnings)
    assert results.cache.beside == {"tuned": tuned.fingerprint}
    assert results.cache.hooks[TUNED_HOOK] == WIDTH
    assert read_results(out) == results
    page = write_report([out], tmp_path / "page.html").read_text("utf-8")
    assert f"Decoder norm at {HOOK}" in page and f"Decoder norm at {TUNED_HOOK}" in page


def test_costs_at_hooks_of_a_cache_are_of_its_model(
    run: Path, cache: ActivationCache, tuned: ActivationCache, model: TinyModel, tmp_path: Path
) -> None:
    settings = {
        "beside": {"tuned": str(tuned.path)},
        "show_progress": False,
        "ce_tokens": 300,
        "num_latents": 0,
    }
    both = {"model": model, "models_beside": {"tuned": TunedModel()}}
    results = evaluate([run], cache, out=tmp_path / "results.json", **both, **settings)
    alone = evaluate([run], cache, out=tmp_path / "alone.json", model=model, **settings)
    (base, other), (expected, _) = ([one.language_model for one in r.saes[0].hooks] for r in (results, alone))
    assert base == expected and base is not None and other is not None
    assert other.ce_clean != base.ce_clean  # of a model that does not know this text
    assert 0 < other.kl_sae < other.kl_zero and other.top1_sae > other.top1_zero
    assert other.activation_mismatch < 0.01 and not any("CE and KL" in each for each in results.warnings)
    wrong = {"model": model, "models_beside": {"tuned": model}}
    with pytest.raises(UsageError, match=f"does not give the activations .* at {TUNED_HOOK}"):
        evaluate([run], cache, out=tmp_path / "wrong.json", **wrong, **settings)
    with pytest.raises(UsageError, match=r"a model for other; the caches beside .* are tuned"):
        evaluate([run], cache, out=tmp_path / "no.json", models_beside={"other": model}, **settings)


def test_both_caches_are_asked_for(
    run: Path, cache: ActivationCache, tuned: ActivationCache, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    with pytest.raises(
        UsageError, match=r"'evaluate' takes those beside .* with --set beside.NAME=CACHE, for 'tuned'"
    ):
        evaluate([run], cache, out=out, show_progress=False)
    with pytest.raises(UsageError, match="was trained from another cache"):
        evaluate([run], cache, beside={"tuned": str(cache.path)}, out=out, show_progress=False)
    with pytest.raises(UsageError, match="activations of another model"):
        evaluate(
            [run], cache, beside={"tuned": str(cache.path)}, other_cache=True, out=out, show_progress=False
        )


def test_inspect_runs_one_model(run: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(run), "some words"])
    assert done.exit_code == 2
    assert "was trained on the caches of several models" in done.stderr
