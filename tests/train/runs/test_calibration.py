"""Calibrated thresholds give the configured number of active latents, and impossible ones are refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.common.errors import UsageError
from saecache.store import CacheWriter, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import metrics
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import SAE, TrainConfig, load_sae, run
from saecache.train.runs.calibration import calibrated, calibrated_on, rows_for_calibration

KINDS = {
    "batch_topk": {"kind": "batch_topk", "k": 4},
    "mutual_choice": {"kind": "mutual_choice", "k": 4, "aux_zipf": None},
    "feature_choice": {"kind": "feature_choice", "k": 4},
    "sampled": {"kind": "sampled", "k": 4, "score": "squared_l2", "pool_factor": 10},
    "matryoshka": {"kind": "matryoshka_batch_topk", "k": 4, "prefixes": [0.5, 1.0]},
    "jumprelu": {"kind": "jumprelu", "initial_threshold": 0.1},
}


def cache_of_documents(path: Path, num_documents: int, rows_each: int, seed: int = 0) -> ActivationCache:
    """A cache of documents of equal length, about half of them held out."""
    documents = torch.arange(num_documents).repeat_interleave(rows_each).numpy()
    with CacheWriter(
        path, hooks={"resid": 24}, identity={"source": "test"}, heldout_fraction=0.5, seed=seed
    ) as writer:
        writer.write_rows({"resid": sparse_rows(len(documents), 24, 0)}, documents=documents)
    return open_cache(path)


def heldout(cache: ActivationCache) -> torch.Tensor:
    return cache.rows("resid", range(cache.num_rows("heldout")), "heldout")


def mean_l0(sae: SAE, x: torch.Tensor) -> float:
    return float((sae.encode(x) != 0).sum() / len(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l0", [1.0, 4.0, 6.5])
def test_held_out_rows_have_the_given_l0(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path, kind: str, l0: float
) -> None:
    config = make_config(KINDS[kind], steps=4, log={"every_steps": 4, "progress": False, "heldout_rows": 0})
    (folder,) = run(config, cache, tmp_path / "run").saes.values()
    sae, x = load_sae(folder), heldout(cache)
    assert sae.threshold is not None
    before = sae.threshold.clone()
    found = calibrated(sae, x, l0)
    assert mean_l0(found, x) * len(x) == round(l0 * len(x))
    assert found.threshold is not None and found.threshold.shape == before.shape
    assert torch.equal(sae.threshold, before), "the given SAE does not change"
    if before.dim():  # what was learned about latents stays
        ratio = (found.threshold / before)[before.isfinite()]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        assert torch.equal(found.threshold.isfinite(), before.isfinite())
    found.save(tmp_path / "calibrated")
    assert torch.equal(load_sae(tmp_path / "calibrated").encode(x), found.encode(x))


def test_a_run_can_calibrate_at_its_end(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Calibration changes the threshold and nothing else; kinds without one do not change."""
    variants = [KINDS["batch_topk"], {"kind": "topk", "k": 4}, KINDS["feature_choice"]]
    plain = run(make_config(*variants), cache, tmp_path / "plain").saes
    result = run(make_config(*variants, calibration={}), cache, tmp_path / "run")
    rows = rows_for_calibration(cache, 16384)
    x = heldout(cache)[rows.start : rows.stop]
    for name, folder in result.saes.items():
        sae, uncalibrated = load_sae(folder), load_sae(plain[name])
        assert torch.equal(sae.W_enc, uncalibrated.W_enc)
        if sae.threshold is None:
            assert "calibration" not in sae.cfg.training
            continue
        assert mean_l0(sae, x) == 4 and mean_l0(uncalibrated, x) != 4
        note = {"l0": 4.0, "rows": len(rows), "first_row": rows.start}
        assert sae.cfg.training["calibration"] == note
    last = {line["variant"]: line for line in metrics(tmp_path / "run")}
    saved = load_sae(result.saes["batch_topk_k4"])
    reported = last["batch_topk_k4"]["heldout_l0"]
    assert reported == pytest.approx(mean_l0(saved, heldout(cache)), rel=1e-6), "what is reported is saved"
    again = load_sae(plain["batch_topk_k4"])
    assert mean_l0(calibrated_on(again, cache), x) == 4


@pytest.mark.parametrize(
    ("variants", "calibration", "message"),
    [
        ([{"kind": "topk", "k": 4}], {}, "topk has no threshold at inference: leave it out"),
        ([KINDS["jumprelu"]], {}, "variant jumprelu_step_0.003 has no l0 of its own: set calibration.l0"),
    ],
)
def test_contradictions_are_reported_before_the_first_step(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    variants: list[dict[str, Any]],
    calibration: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        run(make_config(*variants, calibration=calibration), cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("l0", [95, 1e308])
def test_an_l0_that_no_threshold_gives_is_reported(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    l0: float,
) -> None:
    """If calibration fails at the end of a run, the SAE is saved without it."""
    config = make_config(KINDS["batch_topk"], calibration={"l0": l0})
    result = run(config, cache, tmp_path / "run")
    sae = load_sae(result.saes["batch_topk_k4"])
    assert f"no threshold gives l0={l0:g}" in caplog.text
    assert caplog.records[-1].levelno == logging.ERROR
    assert "no threshold gives" in sae.cfg.training["calibration"]["failed"]
    (topk,) = run(make_config({"kind": "topk", "k": 4}), cache, tmp_path / "topk").saes.values()
    with pytest.raises(UsageError, match="inference by topk has no threshold to calibrate"):
        calibrated(load_sae(topk), sparse_rows(10, 24, 0))


def test_calibration_takes_the_last_documents(tmp_path: Path) -> None:
    """It begins with a document in the last quarter of the held-out rows."""
    cache = cache_of_documents(tmp_path / "many", 80, 7)
    heldout = cache.num_rows("heldout")
    rows = rows_for_calibration(cache, 10**6)
    document = cache.locate(range(heldout), split="heldout")[2]
    assert rows.stop == heldout and heldout * 0.75 <= rows.start < heldout * 0.75 + 7
    assert set(document[: rows.start]).isdisjoint(document[rows.start :]), "no document is on both sides"
    assert rows_for_calibration(cache, 3) == range(rows.start, rows.start + 3)


def test_one_held_out_document_is_cut(tmp_path: Path) -> None:
    cache = cache_of_documents(tmp_path / "cache", 2, 200)
    assert (len(cache), cache.num_rows("heldout")) == (200, 200)
    assert rows_for_calibration(cache, 10**6) == range(150, 200)
