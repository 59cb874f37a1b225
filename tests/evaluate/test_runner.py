"""An evaluation from folders to results.json, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.common.versions import package_version
from saecache.evaluate import format_table, run
from saecache.evaluate.definitions import DEFINITIONS
from saecache.evaluate.results import read_results
from saecache.evaluate.rows import choose_rows
from saecache.evaluate.targets import find_targets
from saecache.store import CacheWriter, open_cache
from saecache.train import load_sae
from saecache.train.variants.topk import TopK

from .conftest import HOOK, LATENTS, WIDTH, make_sae


def test_every_figure_against_whole_tensors(run_dir, cache, model) -> None:
    results = run(
        [run_dir],
        cache,
        model=model,
        decode_token="<{}>".format,
        num_latents=5,
        num_contexts=3,
        show_progress=False,
    )
    assert [sae.name for sae in results.saes] == ["batch_topk_k6", "raw_k4", "topk_k4"]
    assert results.warnings == []
    assert results.cache.split == "heldout"
    assert results.cache.rows == results.cache.heldout_rows == cache.num_rows("heldout")
    everything = np.arange(cache.num_rows("heldout"))
    for found in results.saes:
        sae = load_sae(run_dir / found.name / "sae")
        kind = sae.normalizer.kind
        x = cache.rows(found.hook, everything, split="heldout", normalization=kind).double()
        raw = cache.rows(found.hook, everything, split="heldout", normalization="none")
        codes = sae.encode(x.float())
        reconstruction = sae.decode(codes).double()
        variance = (x - x.mean(0)).square().sum()
        assert found.normalized.fvu == pytest.approx(((x - reconstruction).square().sum() / variance).item())
        assert found.normalized.mse == pytest.approx((x - reconstruction).square().mean().item())
        raw_error = raw.double() - sae(raw, input="raw").double()
        raw_variance = (raw.double() - raw.double().mean(0)).square().sum()
        assert found.raw.fvu == pytest.approx((raw_error.square().sum() / raw_variance).item(), rel=2e-3)
        assert found.codes.l0 == pytest.approx((codes != 0).sum(1).double().mean().item())
        assert found.codes.alive == ((codes > 0).sum(0) > 0).sum()
        assert found.codes.alive + found.codes.dead == LATENTS
        assert found.codes.dead >= 5
        assert sum(found.features_per_token.counts) == len(x)
        assert len(found.latents) == 6
        for latent in found.latents:
            assert latent.density == pytest.approx((codes[:, latent.index] > 0).double().mean().item())
            assert latent.density == pytest.approx(
                found.density.density[found.density.rank.index(latent.rank)]
            )
            assert latent.contexts
        assert found.language_model is not None
        assert 0 < found.language_model.ce_recovered < 1
        assert found.language_model.ce_clean < found.language_model.ce_sae < found.language_model.ce_zero


def test_block_size_does_not_matter(run_dir, cache) -> None:
    target = [run_dir / "topk_k4" / "sae"]
    whole = run(target, cache, show_progress=False).saes[0]
    blocks = run(target, cache, rows_per_block=17, show_progress=False).saes[0]
    assert blocks.normalized.fvu == pytest.approx(whole.normalized.fvu, rel=1e-6)
    assert blocks.codes.model_dump(exclude={"l1"}) == whole.codes.model_dump(exclude={"l1"})
    assert blocks.density == whole.density
    assert [latent.contexts for latent in blocks.latents] == [latent.contexts for latent in whole.latents]


def test_the_results_file_is_what_run_returns(run_dir, cache, tmp_path) -> None:
    results = run([run_dir], cache.path, show_progress=False)
    path = run_dir / "results.json"
    assert read_results(path) == results
    text = json.loads(path.read_text())
    assert text["format_version"] == 1
    assert text["cache"]["fingerprint"] == cache.fingerprint
    assert text["saes"][0]["sae_dir"] == "batch_topk_k6/sae"
    assert text["saes"][0]["language_model"] is None
    assert text["definitions"] == DEFINITIONS
    assert text["settings"]["max_rows"] == 500_000
    assert text["software"]["torch"] == package_version("torch")
    assert [p.name for p in run_dir.iterdir() if "tmp" in p.name] == []
    elsewhere = tmp_path / "new" / "folder" / "results.json"
    run([run_dir / "topk_k4" / "sae"], cache, out=elsewhere, show_progress=False)
    assert (elsewhere.parent / read_results(elsewhere).saes[0].sae_dir / "cfg.json").is_file()
    run([run_dir / "topk_k4" / "sae"], cache, show_progress=False)
    assert len(read_results(run_dir / "topk_k4" / "results.json").saes) == 1
    assert len(read_results(path).saes) == 3


def test_progress_and_warnings_go_to_stderr(run_dir, cache, capsys) -> None:
    run([run_dir], cache)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "topk_k4" in captured.err


def test_the_table_is_aligned_and_says_what_was_measured(run_dir, cache, model) -> None:
    results = run([run_dir], cache, model=model, show_progress=False)
    lines = format_table(results).splitlines()
    assert len(lines) == 2 + 3 + 1 + 4  # heads, SAEs, what was measured, and one pair of SAEs at one hook
    assert lines[0].split()[:7] == ["SAE", "kind", "hook", "latents", "L0", "FVU", "MSE"]
    assert [line.split()[2] for line in lines[2:5]] == [sae.hook for sae in results.saes]
    ends = {len(line) for line in lines[:5]}
    assert len(ends) == 1
    assert f"{results.saes[0].normalized.fvu:.4f}" in lines[2]
    assert f"{results.saes[0].language_model.ce_recovered:.4f}" in lines[2]
    assert "held-out rows" in lines[5]
    assert lines[6] == ""
    assert lines[9].split()[:2] == ["batch_topk_k6", "topk_k4"]
    assert f"{results.overlap[0].mmcs_a_in_b:.3f}" in lines[9]
    without = format_table(run([run_dir], cache, show_progress=False))
    assert without.splitlines()[2].endswith("-")
    assert "CE and KL" not in without


def test_without_heldout_rows_the_last_training_rows_and_a_warning(
    cache_without_heldout, model, tmp_path, capsys
) -> None:
    cache = cache_without_heldout
    make_sae(cache, "topk_k4", TopK(k=4)).save(tmp_path / "run" / "topk_k4" / "sae")
    results = run([tmp_path / "run"], cache, model=model, decode_token=str)
    rows = round(len(cache) / 10)
    assert results.cache.split == "train"
    assert results.cache.rows == rows
    assert "no held-out rows" in results.warnings[0]
    assert f"{rows:,} training rows" in results.warnings[0]
    assert "warning: The cache has no held-out rows" in capsys.readouterr().err
    assert results.saes[0].latents[0].contexts
    assert results.saes[0].language_model.num_tokens > 0
    assert "TRAINING rows" in format_table(results)
    first = len(cache) - rows
    x = cache.rows(HOOK, np.arange(first, len(cache)), normalization="unit")
    sae = load_sae(tmp_path / "run" / "topk_k4" / "sae")
    expected = (x - sae(x)).double().square().sum() / (x - x.double().mean(0)).square().sum()
    assert results.saes[0].normalized.fvu == pytest.approx(expected.item(), rel=1e-5)


def test_max_rows_takes_the_first(cache) -> None:
    rows, warnings = choose_rows(cache, 100)
    assert (rows.split, rows.first, rows.count, warnings) == ("heldout", 0, 100, [])
    assert [list(block) for block in rows.blocks(64)] == [list(range(64)), list(range(64, 100))]


def test_a_cache_without_tokens_has_metrics_only(tmp_path, model) -> None:
    with CacheWriter(
        tmp_path / "c", hooks={HOOK: WIDTH}, identity={"source": "simulation"}, heldout_fraction=0.3
    ) as writer:
        writer.write_rows({HOOK: torch.randn(600, WIDTH, generator=torch.Generator().manual_seed(0))})
    cache = open_cache(tmp_path / "c")
    make_sae(cache, "a", TopK(k=4)).save(tmp_path / "run" / "a" / "sae")
    results = run([tmp_path / "run"], cache, model=model, show_progress=False)
    assert results.saes[0].latents == []
    assert results.saes[0].language_model is None
    assert "no token ids" in results.warnings[0]
    assert results.saes[0].normalized.fvu > 0


def test_an_sae_of_another_cache_is_refused(run_dir, cache_without_heldout, cache) -> None:
    with pytest.raises(UsageError) as error:
        run([run_dir], cache_without_heldout, show_progress=False)
    assert f"expected fingerprint {cache.fingerprint}" in str(error.value)
    assert f"has {cache_without_heldout.fingerprint}" in str(error.value)
    assert not (run_dir / "results.json").exists()


def test_an_absent_hook_or_another_width_is_refused(run_dir, cache) -> None:
    config = run_dir / "topk_k4" / "sae" / "cfg.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "hook": "resid_post.9"}))
    with pytest.raises(UsageError, match=r"hook 'resid_post.9'.* has\s+resid_post.0, resid_post.1"):
        run([run_dir], cache, show_progress=False)


def test_damaged_weights_are_told(run_dir, cache) -> None:
    sae = load_sae(run_dir / "topk_k4" / "sae")
    sae.W_dec.fill_(float("nan"))
    sae.save(run_dir / "topk_k4" / "sae")
    with pytest.raises(UsageError, match=r"topk_k4.*tensor W_dec is not finite"):
        run([run_dir], cache, show_progress=False)
    sae.W_dec.fill_(3e38)
    sae.save(run_dir / "topk_k4" / "sae")
    with pytest.raises(UsageError, match="topk_k4 reconstructs values that are not finite"):
        run([run_dir], cache, show_progress=False)


def test_bad_usage_is_told(run_dir, cache, tmp_path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        run([tmp_path / "absent"], cache, show_progress=False)
    with pytest.raises(UsageError, match=r"it has no cfg\.json"):
        run([cache.path], cache, show_progress=False)
    with pytest.raises(UsageError, match="named twice"):
        run([run_dir, run_dir / "topk_k4" / "sae"], cache, out=tmp_path / "r.json", show_progress=False)
    with pytest.raises(UsageError, match="--out"):
        run([run_dir / "topk_k4" / "sae", run_dir / "raw_k4" / "sae"], cache, show_progress=False)
    with pytest.raises(UsageError, match=r"max_rows: must be greater than or equal to 1 \(got 0\)"):
        run([run_dir], cache, max_rows=0, show_progress=False)
    with pytest.raises(
        UsageError, match=r"max_row: unknown key \(did you mean 'max_rows'\?\); known keys here: .*max_rows, "
    ):
        run([run_dir], cache, max_row=5, show_progress=False)


def test_equal_names_of_two_runs_are_told_apart(run_dir, cache, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "second"
    make_sae(cache, "topk_k4", TopK(k=4)).save(other / "topk_k4" / "sae")
    names = [target.name for target in find_targets([run_dir, other])]
    assert names == ["batch_topk_k6", "raw_k4", "tiny/topk_k4", "second/topk_k4"]


def test_results_that_cannot_be_read_are_told(tmp_path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(UsageError, match="measure first, with 'saecache evaluate"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(UsageError, match="not a results file"):
        read_results(path)
    path.write_text('{"saes": []}')
    with pytest.raises(UsageError, match="not a results file"):
        read_results(path)
