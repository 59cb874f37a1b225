"""Runs that read the caches of a base and a tuned model together, and rows that are sinks in one of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache import CacheWriter
from saecache.common.errors import UsageError
from saecache.common.fvu import FVU
from saecache.store.reading.reader import ActivationCache, open_cache
from saecache.testing.run_folders import rewind, run_bytes
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, load_sae, run
from saecache.train.engine.feed import batches_of_sources
from saecache.train.runs.planning import plan_run
from saecache.train.sae_hooks import join, split_by_hook

CROSSCODER: dict[str, Any] = {
    "hook": ["resid_post.3", "tuned:resid_post.3"],
    "crosscoder": True,
    "normalization": "unit_scale",
}
BATCH_TOPK: dict[str, Any] = {"kind": "batch_topk", "k": 6}
Config = Callable[..., TrainConfig]


def write(path: Path, rows: torch.Tensor, model: str, **settings: Any) -> ActivationCache:
    with CacheWriter(
        path,
        hooks={"resid_post.3": rows.shape[1]},
        identity={"source": "a text", "model": {"name": model}},
        heldout_fraction=0.1,
        **settings,
    ) as writer:
        writer.write_rows({"resid_post.3": rows})
    return open_cache(path)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tuned model's rows are ten times the base model's, turned; both have sinks, at other tokens."""
    folder = tmp_path_factory.mktemp("caches")
    base = sparse_rows(2400, 12, 0)
    tuned = 10 * base @ torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]
    write(folder / "base", base, "base")
    write(folder / "tuned", tuned, "tuned")
    sink = torch.arange(12.0) - 5.5
    base[::12], tuned[5::12] = 1e3 * sink, 1e4 * sink
    write(folder / "base-sinks", base, "base")
    write(folder / "tuned-sinks", tuned, "tuned")
    return {path.name: path for path in folder.iterdir()}


def test_a_crosscoder_of_two_models(places: dict[str, Path], make_config: Config, tmp_path: Path) -> None:
    beside = {"tuned": str(places["tuned"])}
    config = make_config(BATCH_TOPK, beside=beside, steps=60, log={"every_steps": 30}, **CROSSCODER)
    result = run(config, places["base"], tmp_path / "run")
    sae = load_sae(result.saes["batch_topk_k6"])
    assert sae.cfg.hook == "resid_post.3+tuned:resid_post.3" and sae.W_dec.shape == (96, 24)
    caches = {"resid_post.3": open_cache(places["base"]), "tuned:resid_post.3": open_cache(places["tuned"])}
    numbers = np.arange(caches["resid_post.3"].num_rows("heldout"))
    raw = {h: c.rows("resid_post.3", numbers, "heldout", "none") for h, c in caches.items()}
    back = split_by_hook(sae.cfg, sae(join(sae.cfg, raw), input="raw"))
    for hook in raw:
        measured = FVU()
        measured.add(raw[hook], back[hook])
        assert measured.value() < 0.5
    base, tuned = sae.cfg.hooks or ()
    assert base.normalizer.factor == pytest.approx(10 * (tuned.normalizer.factor or 0), rel=1e-3)
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["config"]["beside"] == {"tuned": caches["tuned:resid_post.3"].fingerprint}
    assert sae.cfg.cache["beside"]["tuned"]["model"] == {"name": "tuned"}
    assert sae.cfg.cache["beside"]["tuned"]["fingerprint"] == caches["tuned:resid_post.3"].fingerprint


def test_it_resumes_exactly_wherever_the_caches_are(
    places: dict[str, Path], make_config: Config, tmp_path: Path
) -> None:
    shutil.copytree(places["tuned"], tmp_path / "moved")
    config, moved = (
        make_config(BATCH_TOPK, beside={"tuned": str(place)}, steps=18, **CROSSCODER)
        for place in (places["tuned"], tmp_path / "moved")
    )  # 18 steps of 8 in an epoch
    run(config, places["base"], tmp_path / "run")
    before = run_bytes(tmp_path / "run")
    rewind(tmp_path / "run", "batch_topk_k6", to_step=9)
    assert not run(moved, places["base"], tmp_path / "run").reused
    assert run_bytes(tmp_path / "run") == before
    other = make_config(BATCH_TOPK, beside={"tuned": str(places["base"])}, steps=18, **CROSSCODER)
    with pytest.raises(UsageError, match=r"holds another run(?s:.*)config\.beside\.tuned: "):
        run(other, places["base"], tmp_path / "run")


def test_a_transcoder_from_one_model_to_the_other(
    places: dict[str, Path], make_config: Config, tmp_path: Path
) -> None:
    config = make_config(
        {"kind": "topk", "k": 6},
        beside={"tuned": str(places["tuned"])},
        hook="resid_post.3",
        target={"hook": "tuned:resid_post.*", "skip": True},
        steps=60,
    )
    (last,) = run(config, places["base"], tmp_path / "run").last_lines.values()
    assert last["heldout_fvu"] < 0.5, "of other tokens it would be 1"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (2300, {}, r"training rows: \d+ there, \d+ here"),
        (2400, {"seed": 1}, "seed: 0 there, 1 here"),
    ],
)
def test_other_tokens_are_refused_before_anything_is_written(
    places: dict[str, Path], make_config: Config, tmp_path: Path, rows: int, settings: Any, message: str
) -> None:
    write(tmp_path / "tuned", sparse_rows(rows, 12, 0), "tuned", **settings)
    config = make_config(BATCH_TOPK, beside={"tuned": str(tmp_path / "tuned")}, **CROSSCODER)
    with pytest.raises(UsageError, match=rf"\(tuned\) cannot be read beside(?s:.*){message}"):
        run(config, places["base"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_row_that_is_a_sink_in_one_cache_is_left_out_of_both(
    places: dict[str, Path], make_config: Config, tmp_path: Path
) -> None:
    cache = open_cache(places["base-sinks"], beside={"tuned": places["tuned-sinks"]})
    settings = {**CROSSCODER, "normalization": "none", "sink_ratio": 20}
    config = make_config(BATCH_TOPK, steps=18, **settings)
    plan = plan_run(config, cache)
    raw = [cache.rows(h, np.arange(len(cache)), normalization="none") for h in cache.hooks]
    norms = [(rows - rows.mean(1, keepdim=True)).norm(dim=1) for rows in raw]
    usable = torch.stack([norm < 20 * norm.median() for norm in norms])
    assert plan.rows == int(usable.all(0).sum()) < int(usable[0].sum()) < len(cache)
    seen = [
        [batch[source].norm(dim=1) for source in plan.sources]
        for batch in batches_of_sources(config, cache, plan.sources, torch.device("cpu"), 0, 18, plan.hooks)
    ]
    for base, tuned in seen:  # 18 batches are over two epochs
        torch.testing.assert_close(tuned, 10 * base, rtol=2e-2, atol=2e-2)
        assert float(base.max()) < 30 * float(norms[0].median())
    run(config, cache, tmp_path / "run")
    before = run_bytes(tmp_path / "run")
    rewind(tmp_path / "run", "batch_topk_k6", to_step=9)
    run(config, cache, tmp_path / "run")
    assert run_bytes(tmp_path / "run") == before


def test_saes_of_several_hooks_leave_out_the_same_rows(
    places: dict[str, Path], make_config: Config, tmp_path: Path
) -> None:
    """Also of the SAEs that do not read the hook where a row is a sink: their rows are the same."""
    cache = open_cache(places["base-sinks"], beside={"tuned": places["tuned-sinks"]})
    config = make_config(BATCH_TOPK, hook="all", sink_ratio=20)
    result = run(config, cache, tmp_path / "run")
    assert set(result.saes) == {"resid_post.3-batch_topk_k6", "tuned-resid_post.3-batch_topk_k6"}
    alone = make_config(BATCH_TOPK, hook="resid_post.3", sink_ratio=20)
    assert plan_run(config, cache).rows < plan_run(alone, cache).rows
