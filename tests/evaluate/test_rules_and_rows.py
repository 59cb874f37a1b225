"""What is measured: the rule of training, another cache, held-out documents only, and too few rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import UsageError
from saecache.evaluate import format_table, run
from saecache.evaluate.config import EvaluateConfig
from saecache.evaluate.rows import MeasuredRows, choose_rows, group_rows
from saecache.evaluate.splicing import reconstruct_in_batches
from saecache.store import CacheWriter, StorageConfig, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.train import SAE, load_sae
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.topk import TopK

from .conftest import HOOK, LATENTS, WIDTH, TinyModel, make_cache, make_sae


def heldout(cache: ActivationCache, rows: np.ndarray, kind: str = "unit") -> torch.Tensor:
    return cache.rows(HOOK, rows, split="heldout", normalization=kind)


# ---- the rule of training


def test_the_batch_rule_is_that_of_full_shuffled_batches(run_dir, cache) -> None:
    settings = {"rule": "batch", "batch_rows": 100, "num_latents": 3, "show_progress": False}
    results = run([run_dir / "batch_topk_k6" / "sae"], cache, **settings)
    found = results.saes[0]
    sae = load_sae(run_dir / "batch_topk_k6" / "sae")
    rows, _ = choose_rows(cache, 10**6)
    batches = list(rows.batches(100, seed=0))
    assert {len(batch) for batch in batches} == {100}
    assert len(batches) == rows.count // 100
    x = torch.cat([heldout(cache, batch) for batch in batches]).double()
    codes = torch.cat([sae.encode(heldout(cache, batch), as_trained=True) for batch in batches])
    assert found.rule == "batch"
    assert found.rows == 100 * len(batches) < rows.count
    assert f"measured on {found.rows:,} held-out rows" in format_table(results)
    assert found.codes.l0 == pytest.approx((codes != 0).sum(1).double().mean().item())
    error = (x - sae.decode(codes).double()).square().sum()
    assert found.normalized.fvu == pytest.approx((error / (x - x.mean(0)).square().sum()).item(), rel=1e-5)
    assert found.codes.l0 == pytest.approx(6, abs=0.3)  # what training sets, unlike the threshold
    for latent in found.latents:
        assert latent.density == pytest.approx((codes[:, latent.index] != 0).double().mean().item())
        assert sum(latent.activation_histogram.counts) == int((codes[:, latent.index] != 0).sum())


def test_blocks_and_forward_batches_do_not_change_the_batch_rule(run_dir, cache, model) -> None:
    target, settings = (
        [run_dir / "batch_topk_k6" / "sae"],
        {"rule": "batch", "batch_rows": 128, "num_latents": 0},
    )
    one = run(target, cache, model=model, show_progress=False, **settings).saes[0]
    two = run(
        target, cache, model=model, show_progress=False, rows_per_block=17, logit_bytes=50_000, **settings
    ).saes[0]
    assert one.codes == two.codes
    assert one.normalized == two.normalized
    for field in ("ce_sae", "kl_sae", "ce_recovered", "top1_sae"):
        expected = getattr(one.language_model, field)
        assert getattr(two.language_model, field) == pytest.approx(expected, rel=1e-5)
    threshold = run(target, cache, model=model, num_latents=0, show_progress=False).saes[0]
    assert threshold.rule == "threshold"
    assert threshold.language_model.ce_sae != one.language_model.ce_sae


def test_a_rule_by_row_reconstructs_alike_in_batches(cache) -> None:
    sae = make_sae(cache, "topk", TopK(k=4))
    wanted = np.arange(5, 300, 2)
    by_row = reconstruct_in_batches(
        sae, cache, "heldout", wanted, EvaluateConfig(rule="batch", batch_rows=50)
    )
    some = torch.tensor([5, 299, 101, 5])
    expected = sae(heldout(cache, some.numpy(), "none"), input="raw")
    assert torch.allclose(by_row(torch.empty(4, WIDTH), some), expected, atol=5e-3)


def with_calibration(sae: SAE, first_row: object) -> SAE:
    note = {"l0": 4.0, "rows": 10, "first_row": first_row}
    cfg = sae.cfg.model_copy(update={"training": {**sae.cfg.training, "calibration": note}})
    return SAE(cfg, dict(sae.named_buffers()))


def test_rows_of_a_calibration_are_not_measured(cache, other_cache, tmp_path) -> None:
    for name, first_row in (("a", 150), ("b", 201), ("c", None)):
        sae = make_sae(cache, name, BatchTopK(k=4))
        (sae if first_row is None else with_calibration(sae, first_row)).save(tmp_path / "run" / name / "sae")
    settings = {"num_latents": 0, "show_progress": False}
    results = run([tmp_path / "run"], cache, **settings)
    assert {found.rows for found in results.saes} == {150}, "all SAEs are measured on the same rows"
    sae = load_sae(tmp_path / "run" / "c" / "sae")
    x = heldout(cache, np.arange(150))
    assert results.saes[2].codes.l0 == pytest.approx(float((sae.encode(x) != 0).sum()) / 150)
    (other,) = run([tmp_path / "run" / "a"], other_cache, other_cache=True, **settings).saes
    assert other.rows == other_cache.num_rows("heldout") > 150, "there the rows are others"
    with_calibration(sae, -3).save(tmp_path / "damaged" / "sae")
    with pytest.raises(UsageError, match=r"calibration\.first_row=-3, expected a row"):
        run([tmp_path / "damaged"], cache, **settings)


def test_batches_use_every_row_once_or_leave_it_out() -> None:
    rows = MeasuredRows(split="heldout", first=7, count=95)
    batches = list(rows.batches(30, seed=1))
    everything = np.concatenate(batches)
    assert len(set(everything)) == len(everything) == 90
    assert everything.min() >= 7
    assert everything.max() < 102
    assert all((np.diff(batch) > 0).all() for batch in batches)
    assert not np.array_equal(everything, np.concatenate(list(rows.batches(30, seed=2))))
    (only,) = rows.batches(4096, seed=0)
    assert only.tolist() == list(range(7, 102))


# ---- another cache


@pytest.fixture(scope="module")
def other_cache(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> ActivationCache:
    """Of the same model, with another split of its documents and another storage, so another fingerprint."""
    path = tmp_path_factory.mktemp("other") / "cache"
    storage = StorageConfig(chunk_rows=32, normalization="none")
    return make_cache(path, model, heldout_fraction=0.6, storage=storage)


def test_another_cache_of_the_same_model_when_asked_for(run_dir, cache, other_cache, model) -> None:
    with pytest.raises(UsageError, match=r"allow another one of the same model with --other-cache"):
        run([run_dir], other_cache, show_progress=False)
    results = run([run_dir], other_cache, model=model, other_cache=True, num_latents=0, show_progress=False)
    assert "trained from another cache of the same model" in results.warnings[0]
    assert results.cache.fingerprint == other_cache.fingerprint != cache.fingerprint
    for found in results.saes:
        sae = load_sae(run_dir / found.name / "sae")
        rows = np.arange(other_cache.num_rows("heldout"))
        raw = other_cache.rows(found.hook, rows, split="heldout", normalization="none")
        x = sae.normalizer.apply(raw)[0].double()  # by the numbers of the SAE's training, not of this cache
        error = (x - sae(x.float()).double()).square().sum()
        assert found.normalized.fvu == pytest.approx(
            (error / (x - x.mean(0)).square().sum()).item(), rel=1e-4
        )
        assert found.language_model.ce_recovered > 0


def test_a_cache_of_another_model_is_refused(run_dir, cache, tmp_path) -> None:
    with CacheWriter(
        tmp_path / "c", hooks={HOOK: WIDTH}, identity={"model": {"name": "huge"}}, heldout_fraction=0.3
    ) as writer:
        writer.write_rows({HOOK: torch.randn(600, WIDTH)})
    with pytest.raises(UsageError, match=r"another model: expected .*tiny.*, but .* is of .*huge"):
        run([run_dir / "topk_k4" / "sae"], open_cache(tmp_path / "c"), other_cache=True, show_progress=False)


# ---- held-out documents only


def test_no_training_document_enters_an_evaluation(
    run_dir, cache, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row that is read, for whatever figure, is of a document that no training row is of."""
    trained_on = set(cache.locate(np.arange(len(cache)), split="train")[2].tolist())
    read: list[int] = []
    rows = ActivationCache.rows

    def watched(self, hook, indices, split="train", *args, **options):
        read.extend(self.locate(np.asarray(indices), split=split)[2].tolist())
        return rows(self, hook, indices, split, *args, **options)

    def forbidden(self, *_args: object, **_options: object) -> None:
        raise AssertionError("batches hands out training rows")

    monkeypatch.setattr(ActivationCache, "rows", watched)
    monkeypatch.setattr(ActivationCache, "batches", forbidden)
    for rule in ("threshold", "batch"):
        results = run([run_dir], cache, model=model, num_latents=4, rule=rule, show_progress=False)
        shown = [c.document for sae in results.saes for latent in sae.latents for c in latent.contexts]
        assert shown
        assert not trained_on & set(shown)
    assert len(set(read)) > 20
    assert not trained_on & set(read)


def test_only_positions_of_heldout_documents_are_replaced_and_scored(cache) -> None:
    from saecache.evaluate.sequences import choose_sequences

    trained_on = set(cache.locate(np.arange(len(cache)), split="train")[2].tolist())
    found = choose_sequences(cache, "heldout", cache.num_rows("heldout"), 10**6, 0)
    documents = cache.locate(found.rows[found.spliced], split="heldout")[2]
    assert not trained_on & set(documents.tolist())
    assert (found.scored <= found.spliced).all()
    assert ((found.group >= 0) == found.scored).all()
    # Positions of one document share a group.
    scored = cache.locate(found.rows[found.scored], split="heldout")[2]
    for document in set(scored.tolist()):
        assert len(set(found.group[found.scored][scored == document].tolist())) == 1


# ---- the same from anywhere, and too few rows


def test_a_remote_cache_gives_the_same_results(run_dir, cache, model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))
    url = (tmp_path / "bucket" / "cache").as_uri()
    pushed = CliRunner().invoke(app, ["cache", "push", str(cache.path), url])
    assert pushed.exit_code == 0, pushed.output
    target = [run_dir]
    local = run(target, cache, model=model, num_latents=3, show_progress=False)
    remote = run(target, url, model=model, num_latents=3, show_progress=False)
    assert remote.cache.path == url
    assert remote.saes == local.saes
    assert remote.overlap == local.overlap


def test_other_blocks_give_the_same_figures(run_dir, cache, model) -> None:
    whole = run([run_dir], cache, model=model, num_latents=2, show_progress=False)
    blocks = run(
        [run_dir],
        cache,
        model=model,
        num_latents=2,
        rows_per_block=37,
        logit_bytes=60_000,
        show_progress=False,
    )
    for a, b in zip(whole.saes, blocks.saes, strict=True):
        assert_close(a.model_dump(), b.model_dump())
    assert whole.overlap == blocks.overlap


def assert_close(a: object, b: object, where: str = "") -> None:
    """Equal, numbers to 1 part in 100,000."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_close(*pair, f"{where}[{i}]")
    elif isinstance(a, float):
        assert b == pytest.approx(a, rel=1e-5, abs=1e-9), where
    else:
        assert a == b, where


def test_new_figures_are_in_the_results(run_dir, cache, model) -> None:
    results = run([run_dir], cache, model=model, show_progress=False)
    for sae in results.saes:
        assert sae.zipf is not None
        assert sae.codes.dying is not None
        assert sae.collapse.num_sampled == LATENTS
        assert sae.progressive[-1].fvu == pytest.approx(sae.normalized.fvu, rel=1e-5)
        assert sae.rows == results.cache.rows
        for figure, interval in sae.normalized.intervals.items():
            assert interval[0] <= getattr(sae.normalized, figure) <= interval[1]
        cost = sae.language_model
        assert {"ce_recovered", "kl_score", "top1_sae"} <= set(cost.intervals)
        for figure, (low, high) in cost.intervals.items():
            assert low <= getattr(cost, figure) <= high
        assert 0 < cost.top1_sae < 1
    (pair,) = results.overlap  # of two SAEs at one hook; the third is at another
    assert (pair.a, pair.b, pair.hook) == ("batch_topk_k6", "topk_k4", HOOK)
    assert results.definitions.keys() >= {"zipf", "dying", "mmcs", "collapse", "progressive", "intervals"}


def test_a_model_that_does_not_fit_is_refused_before_anything_is_measured(
    run_dir, cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.embed = self.embed.flip(0)

    def measure(*_: object, **__: object) -> None:
        raise AssertionError("nothing should be measured")

    monkeypatch.setattr("saecache.evaluate.runner.measure_sae", measure)
    with pytest.raises(UsageError, match="does not give the activations"):
        run([run_dir], cache, model=Other(), show_progress=False)


def test_too_few_rows_are_said(run_dir, cache) -> None:
    with pytest.raises(UsageError, match=r"1 heldout rows are to be measured, expected at least 2"):
        run([run_dir], cache, max_rows=1, show_progress=False)
    results = run([run_dir], cache, max_rows=60, show_progress=False)
    few = " ".join(results.warnings)
    assert "topk_k4: 60 rows make each of 96 latents active on 2.5 rows on average" in few
    assert "need about 240 rows" in few
    groups = group_rows(cache, MeasuredRows(split="heldout", first=0, count=60))
    assert ("confidence intervals need 10 or more" in few) == (groups.count < 10)


def test_probing_without_a_model_is_refused(run_dir, cache) -> None:
    with pytest.raises(UsageError, match="there is none: leave out --no-model"):
        run([run_dir], cache, absorption=True, show_progress=False)


def test_signs_and_sizes_of_batch_rows(cache) -> None:
    from saecache.evaluate.rows import DEFAULT_BATCH_ROWS, batch_rows_of

    def sae(training: dict[str, object]) -> SAE:
        made = make_sae(cache, "b", BatchTopK(k=4))
        return SAE(made.cfg.model_copy(update={"training": training}), dict(made.named_buffers()))

    assert batch_rows_of(sae({"batch_rows": 512}), EvaluateConfig()) == 512
    assert batch_rows_of(sae({"batch_rows": 512}), EvaluateConfig(batch_rows=64)) == 64
    for odd in ({}, {"batch_rows": "many"}, {"batch_rows": -1}):
        assert batch_rows_of(sae(odd), EvaluateConfig()) == DEFAULT_BATCH_ROWS


# ---- results of former versions


def test_results_of_version_0_2_0_open_and_are_drawn(tmp_path: Path) -> None:
    from saecache.evaluate import write_report
    from saecache.evaluate.results import read_results

    path = Path(__file__).parent / "golden" / "results-0.2.0.json"
    results = read_results(path)
    assert [sae.name for sae in results.saes] == ["batch_topk_k6", "topk_k4"]
    assert results.saes[0].zipf is None
    assert results.saes[0].language_model.top1_sae is None
    assert results.overlap == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_bytes(path.read_bytes())
    html = write_report([tmp_path / "run"], tmp_path / "report.html").read_text("utf-8")
    assert "batch_topk_k6" in html
    assert "topk_k4" in format_table(results)
