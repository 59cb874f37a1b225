"""Synthetic caches hold what they say, and the ordinary commands train on them."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.errors import SaecacheError, UsageError
from saecache.configs import load_config
from saecache.evaluate import synthetic
from saecache.evaluate.synthetic import (
    HOOK,
    GroundTruth,
    SyntheticConfig,
    least_coherence,
    low_coherence_directions,
    mutual_coherence,
    remake_ground_truth,
    write_synthetic,
)
from saecache.store.reading.reader import open_cache

SMALL: dict[str, Any] = {
    "num_rows": 9000,
    "width": 16,
    "coherence": 0.45,
    "buckets": [
        {"name": "rare", "num_features": 12, "frequency": 0.02, "scale": 1.0},
        {"name": "often", "num_features": 8, "frequency": 0.2, "scale": 0.2},
    ],
}


def small(**changes: Any) -> SyntheticConfig:
    return SyntheticConfig.model_validate({**SMALL, **changes})


def test_the_papers_directions_and_its_table() -> None:
    """Coherence and expected L0 of Table 2; the observed L0 and the coefficients of its samples."""
    config = load_config(SyntheticConfig, "sampled-sae", kinds=("synthetic",))
    assert config == SyntheticConfig() and config.num_features == 1024
    assert config.expected_l0 == pytest.approx(61.52, abs=0.005)
    truth = GroundTruth(config)
    torch.testing.assert_close(truth.directions.norm(dim=1), torch.ones(1024))
    assert mutual_coherence(truth.directions) == pytest.approx(0.0833, abs=0.0005)
    codes = torch.cat([codes for codes, _ in truth.blocks()])
    assert codes.shape == (10_000, 1024)
    assert float((codes != 0).sum(1).float().mean()) == pytest.approx(61.52, abs=0.3)
    for i, (mean, std) in enumerate([(0.801, 0.605), (0.798, 0.601), (0.159, 0.120), (0.159, 0.120)]):
        magnitude = codes[:, truth.bucket == i]
        magnitude = magnitude[magnitude != 0].abs()
        assert float(magnitude.mean()) == pytest.approx(mean, rel=0.015)
        assert float(magnitude.std()) == pytest.approx(std, rel=0.015)
    rows = torch.cat([rows for _, rows in truth.blocks()])
    signal = codes @ truth.directions
    snr = 10 * torch.log10(signal.square().sum() / (rows - signal).square().sum())
    assert float(snr) == pytest.approx(20, abs=0.15)


def test_a_cache_holds_the_rows_and_remembers_the_features(tmp_path: Path) -> None:
    manifest = write_synthetic(small(), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert manifest.train_rows + manifest.heldout_rows == 9000 and 700 < manifest.heldout_rows < 1100
    truth = remake_ground_truth(cache)
    written = torch.cat([rows for _, rows in truth.blocks()])
    numbers = np.arange(200)
    _, _, sequence = cache.locate(numbers)
    stored = cache.rows(HOOK, numbers, normalization="none")
    torch.testing.assert_close(stored, written[torch.from_numpy(sequence)], atol=2e-3, rtol=2e-3)
    facts = cache.provenance["synthetic"]
    assert facts["coherence"] == pytest.approx(mutual_coherence(truth.directions), abs=1e-6)
    assert facts["expected_l0"] == pytest.approx(12 * 0.02 + 8 * 0.2)
    assert facts["observed_l0"] == pytest.approx(facts["expected_l0"], rel=0.03)


def test_it_is_written_once_and_is_the_same_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = write_synthetic(small(), tmp_path / "a").fingerprint
    before = (tmp_path / "a" / "zarr.json").stat().st_mtime_ns
    write_synthetic(small(), tmp_path / "a")
    assert (tmp_path / "a" / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="holds another cache"):
        write_synthetic(small(seed=1), tmp_path / "a")
    with monkeypatch.context() as patched:
        patched.setattr(synthetic.CacheWriter, "finalize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_synthetic(small(), tmp_path / "b")
    assert write_synthetic(small(), tmp_path / "b").fingerprint == fingerprint
    shards = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a" / "rows").rglob("*")
              if p.is_file()}  # fmt: skip
    assert shards == {
        p.relative_to(tmp_path / "b"): p.read_bytes()
        for p in (tmp_path / "b" / "rows").rglob("*")
        if p.is_file()
    }


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_half_normal_coefficients_are_never_negative() -> None:
    codes = torch.cat([codes for codes, _ in GroundTruth(small(coefficients="half_normal")).blocks()])
    assert float(codes.min()) == 0
    assert float(torch.cat([codes for codes, _ in GroundTruth(small()).blocks()]).min()) < 0


def test_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    assert least_coherence(1024, 256) == pytest.approx(0.0542, abs=1e-4)
    with pytest.raises(UsageError, match=r"have at least 0.0542 \(Welch's bound"):
        low_coherence_directions(1024, 256, 0.05, 0)
    with pytest.raises(UsageError, match=r"coherence=0.12: 20 directions .* came down to 0\.\d+ only"):
        low_coherence_directions(20, 16, 0.12, 0)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UsageError, match="Welch"):
        write_synthetic(small(coherence=0.01), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_other_random_numbers_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synthetic(small(), tmp_path / "cache")
    monkeypatch.setattr(synthetic, "low_coherence_directions", lambda *_: torch.eye(20, 16))
    with pytest.raises(SaecacheError, match="other random numbers here"):
        remake_ground_truth(open_cache(tmp_path / "cache"))


FEW = {"coherence": 0.45, "buckets": SMALL["buckets"]}


def of_one_bucket(num_features: int) -> dict[str, Any]:
    return {"coherence": 0.26, "buckets": [SMALL["buckets"][0] | {"num_features": num_features}]}


@pytest.mark.parametrize(
    ("settings", "facts", "match"),
    [
        ({"width": "x"}, {}, "width"),
        ({"width": 32}, {}, "1,024 features of width 32; expected at most 16,384 of width 16"),
        (of_one_bucket(10**12), {}, "expected at most 16,384 of width 16"),
        (of_one_bucket(3000), {}, "came down to"),
        (FEW, {}, "draws other random numbers"),
        (FEW, {"synthetic": []}, "draws other random numbers"),
        (FEW, {"synthetic": {"probe": {"a": 1}}}, "draws other random numbers"),
        (FEW, {"synthetic": {"probe": [0.5, "x"]}}, "draws other random numbers"),
        (FEW, {"synthetic": {"probe": [None] * 8}}, "draws other random numbers"),
    ],
)
def test_settings_of_a_foreign_cache_are_not_believed(
    settings: dict[str, Any], facts: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "MOST_WORK", 1 << 30)  # for those that would take minutes
    cache: Any = SimpleNamespace(
        path="cache",
        hooks=[HOOK],
        d_model=lambda hook: 16,
        manifest=SimpleNamespace(identity={"synthetic": {"width": 16} | settings}),
        provenance=facts,
    )
    with pytest.raises(SaecacheError, match=match):
        remake_ground_truth(cache)


def test_from_the_command_line(tmp_path: Path) -> None:
    """One command makes the cache, the ordinary one trains on it."""
    settings = tmp_path / "small.yaml"
    settings.write_text(json.dumps(SMALL))
    changes = ("num_latents=40", "expansion_factor=null", "batch_rows=512", "variants.0.k=3")
    train = ["train", "batch_topk", "--cache", "cache", "--out", "run"]
    train += [word for change in changes for word in ("--set", change)]
    for command in (["synthetic", str(settings), "--out", "cache", "--set", "num_rows=3000"], train):
        done = subprocess.run(
            [sys.executable, "-c", "from saecache.cli import main; main()", *command],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "batch_topk_k3" / "sae" / "cfg.json").is_file()
