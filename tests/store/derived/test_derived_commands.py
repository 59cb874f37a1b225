"""``saecache cache slice`` and ``merge`` as they are typed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saecache.store import open_cache, verify_cache

from ..commands import saecache


def test_slice(cache_path: Path, tmp_path: Path) -> None:
    arguments = ["slice", cache_path, tmp_path / "s", "--hooks", "mlp_out.0,resid_post.1", "--rows", "100"]
    done = saecache(*arguments, "--heldout-rows", "5", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["train_rows"], facts["heldout_rows"], facts["reused"]) == (100, 5, False)
    assert list(facts["hooks"]) == ["mlp_out.0", "resid_post.1"]
    again = saecache(*arguments, "--heldout-rows", "5")
    assert again.exit_code == 0 and "nothing to do" in again.stdout
    refused = saecache("slice", cache_path, tmp_path / "t", "--hooks", "mlp_out.9")
    assert refused.exit_code == 2 and "did you mean 'mlp_out.0'" in refused.stderr


def test_merge(make_source: Callable[..., Any], write_cache: Callable[..., Any], tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_cache(tmp_path / name, make_source(20, seed=seed), identity={"text": name})
    done = saecache("merge", tmp_path / "a", tmp_path / "b", tmp_path / "ab")
    assert done.exit_code == 0, done.stderr
    assert "fingerprint" in done.stdout
    merged = open_cache(tmp_path / "ab")
    assert len(merged) == sum(len(open_cache(tmp_path / name)) for name in "ab")
    assert verify_cache(tmp_path / "ab").ok


def test_a_url_is_not_taken_for_a_folder(
    cache_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = saecache("slice", cache_path, "s3://team/name", "--rows", "5")
    assert refused.exit_code == 2 and "saecache cache push FOLDER s3://team/name" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 1])
def test_merging_too_few(cache_path: Path, tmp_path: Path, count: int) -> None:
    refused = saecache("merge", *[cache_path] * count, tmp_path / "m")
    assert refused.exit_code == 2 and "at least two caches" in refused.stderr
    assert not (tmp_path / "m").exists()
