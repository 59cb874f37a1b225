"""One run for several hooks: an SAE at each, transcoders between them, and crosscoders of them all."""

import re
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
from saecache.testing.run_folders import metrics, rewind, run_bytes
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, load_sae, run
from saecache.train.engine.feed import batches_of_sources
from saecache.train.runs.planning import plan_run
from saecache.train.sae_hooks import join, split_by_hook

TOPK: dict[str, Any] = {"kind": "topk", "k": 5}
Config = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """Three layers of a made-up model: what the MLPs read, what they add, and the stream."""
    path = tmp_path_factory.mktemp("cache") / "layers"
    widths = {f"{kind}.{i}": 12 for i in (2, 3, 10) for kind in ("mlp_in", "mlp_out", "resid_post")}
    stream, rows = sparse_rows(2400, 12, 0), {}
    for i in (2, 3, 10):
        rows[f"mlp_in.{i}"] = stream / stream.norm(dim=1, keepdim=True)
        rows[f"mlp_out.{i}"] = (rows[f"mlp_in.{i}"] @ sparse_rows(12, 12, i)).relu()
        stream = stream + rows[f"mlp_out.{i}"]
        rows[f"resid_post.{i}"] = stream
    with CacheWriter(path, hooks=widths, identity={"model": {"name": "toy"}}, heldout_fraction=0.1) as writer:
        writer.write_rows(rows)
    return open_cache(path)


def test_every_hook_gets_the_sae_of_a_run_of_its_own(
    layers: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    variants = (TOPK, {"kind": "batch_topk", "k": 4})
    together = run(make_config(*variants, hook="resid_post.*"), layers, tmp_path / "all")
    hooks = [f"resid_post.{i}" for i in (2, 3, 10)]
    assert sorted(together.saes) == sorted(
        f"{hook}-{name}" for hook in hooks for name in ("topk_k5", "batch_topk_k4")
    )
    assert {line["variant"] for line in metrics(tmp_path / "all")} == set(together.saes)
    for hook in hooks:
        alone = run(make_config(*variants, hook=hook), layers, tmp_path / hook)
        for name, folder in alone.saes.items():
            one, same = load_sae(folder), load_sae(together.saes[f"{hook}-{name}"])
            assert one.cfg.hook == same.cfg.hook == hook and same.cfg.name == f"{hook}-{name}"
            for key, tensor in one.named_buffers():
                assert torch.equal(tensor, same.get_buffer(key)), (hook, name, key)
            last, lasts = alone.last_lines[name], together.last_lines[f"{hook}-{name}"]
            assert last["heldout_fvu"] == lasts["heldout_fvu"] and last["fvu"] == lasts["fvu"]


def test_a_run_of_several_hooks_resumes_exactly(
    layers: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(TOPK, hook=["mlp_in.2", "resid_post.3"], target=None)
    run(config, layers, tmp_path / "run")
    before = run_bytes(tmp_path / "run")
    for name in ("mlp_in.2-topk_k5", "resid_post.3-topk_k5"):
        rewind(tmp_path / "run", name, to_step=3)
    assert not run(config, layers, tmp_path / "run").reused
    assert run_bytes(tmp_path / "run") == before


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("start", ["directions", "zeros"])
def test_transcoders_of_every_layer_learn(
    layers: ActivationCache, make_config: Config, tmp_path: Path, skip: bool, start: str
) -> None:
    config = make_config(
        TOPK,
        hook="mlp_in.*",
        target={"hook": "mlp_out.*", "skip": skip},
        initialisation={"decoder": start, "decoder_bias": "mean"},
        normalization="none",
        steps=60,
        log={"every_steps": 30},
    )
    result = run(config, layers, tmp_path / "run")
    assert len(result.saes) == 3 and not result.failed
    for name, folder in result.saes.items():
        sae = load_sae(folder)
        layer = sae.cfg.hook.rpartition(".")[2]
        assert sae.cfg.target is not None and sae.cfg.target.hook == f"mlp_out.{layer}"
        rows = np.arange(layers.num_rows("heldout"))
        x = layers.rows(sae.cfg.hook, rows, "heldout", "none")
        y = layers.rows(f"mlp_out.{layer}", rows, "heldout", "none")
        measured = FVU()
        measured.add(y, sae(x, input="raw"))
        assert measured.value() < (0.5 if start == "zeros" or skip else 0.8)
        assert result.last_lines[name]["heldout_fvu"] == pytest.approx(measured.value(), rel=1e-3)
        norms = sae.W_dec.norm(dim=1)
        assert (float((norms - 1).abs().max()) > 0.1) == (start == "zeros")
        assert bool(sae.W_skip.any()) if skip else "W_skip" not in dict(sae.named_buffers())


def test_before_the_first_step_a_transcoder_predicts_the_mean(
    layers: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(
        TOPK,
        hook="mlp_in.2",
        target={"hook": "mlp_out.2", "skip": True, "normalization": "none"},
        initialisation={"decoder": "zeros", "decoder_bias": "mean", "median_rows": len(layers)},
        optimizer={"learning_rate": 1e-12},
        steps=1,
    )
    (folder,) = run(config, layers, tmp_path / "run").saes.values()
    every = np.arange(len(layers))
    prediction = load_sae(folder)(layers.rows("mlp_in.2", every, normalization="unit"))
    wanted = layers.rows("mlp_out.2", every, normalization="none").mean(0)
    torch.testing.assert_close(prediction, wanted.expand_as(prediction), rtol=1e-4, atol=1e-5)


def test_a_crosscoder_has_one_code_for_all_hooks(
    layers: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    variants = ({"kind": "batch_topk", "k": 6}, {"kind": "relu", "decoder": "free"})
    config = make_config(*variants, hook="resid_post.*", crosscoder=True, steps=60, log={"every_steps": 30})
    result = run(config, layers, tmp_path / "run")
    assert set(result.saes) == {"batch_topk_k6", "relu_l1_0.1_free"}
    sae = load_sae(result.saes["batch_topk_k6"])
    hooks = [f"resid_post.{i}" for i in (2, 3, 10)]
    assert sae.cfg.hooks is not None and [part.hook for part in sae.cfg.hooks] == hooks
    assert sae.W_enc.shape == sae.W_dec.shape == (96, 36)
    rows = np.arange(layers.num_rows("heldout"))
    raw = {hook: layers.rows(hook, rows, "heldout", "none") for hook in hooks}
    back = split_by_hook(sae.cfg, sae(join(sae.cfg, raw), input="raw"))
    for hook in hooks:
        measured = FVU()
        measured.add(raw[hook], back[hook])
        assert measured.value() < 0.5
    with pytest.raises(UsageError, match=r"encodes rows of resid_post.2, .*, got resid_post.3"):
        join(sae.cfg, {"resid_post.3": raw["resid_post.3"]})


def test_rows_of_several_hooks_are_of_the_same_tokens(layers: ActivationCache, make_config: Config) -> None:
    config = make_config(
        TOPK, hook="mlp_in.3", target={"hook": "mlp_out.3", "normalization": "none"}, normalization="none"
    )
    sources = plan_run(config, layers).sources
    weights = sparse_rows(12, 12, 3)
    for batch in batches_of_sources(config, layers, sources, torch.device("cpu"), 7, 20):  # into epoch 1, 2
        x, y = batch[sources[0]], batch[sources[1]]
        torch.testing.assert_close(y, (x @ weights).relu(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook": "nope"}, "expected one of|nope"),
        ({"hook": "attn_out.*"}, r"no hook of the cache matches attn_out\.\*; it has mlp_in\.10"),
        ({}, "set hook to one of .* or to all for an SAE at each"),
        ({"hook": "mlp_in.2", "crosscoder": True}, "a crosscoder needs two hooks or more"),
        (
            {"hook": "mlp_in.2", "target": {"hook": "attn_out.2"}},
            r"the cache has no hook attn_out\.2 for mlp_in\.2; .* Harvest both hooks into one cache",
        ),
        ({"hook": "mlp_in.2", "target": {"hook": "mlp_in.*"}}, "is the hook that is encoded"),
    ],
)
def test_what_cannot_be_read_together_is_refused(
    layers: ActivationCache, make_config: Config, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(make_config(TOPK, **changes), layers, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hook": "a", "crosscoder": True, "target": {"hook": "b"}},
            "a crosscoder reconstructs what it encodes",
        ),
        ({"initialisation": {"decoder": "zeros"}}, "is for transcoders"),
        (
            {"hook": "a", "target": {"hook": "b", "normalization": "unit"}},
            "multiplies every row by a number of its own, .* take one of none, scale, unit_scale",
        ),
    ],
)
def test_settings_that_contradict_each_other(
    make_config: Config, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(TOPK, **changes)


def test_starts_that_do_not_fit_are_refused(cache_of_two_hooks: ActivationCache, make_config: Config) -> None:
    target = {"hook": "resid", "target": {"hook": "out"}}
    with pytest.raises(UsageError, match=r"width 24 cannot start .* of width 16: set initialisation.encoder"):
        plan_run(make_config(TOPK, **target), cache_of_two_hooks)
    free = {**target, "initialisation": {"decoder": "zeros"}}
    for penalized in ({"kind": "relu"}, {"kind": "gated"}):
        with pytest.raises(UsageError, match="its penalty would fade while they grow"):
            plan_run(make_config(penalized, **free), cache_of_two_hooks)
    plan_run(make_config({"kind": "relu", "decoder": "free"}, TOPK, **free), cache_of_two_hooks)


def test_memory_is_planned_with_the_rows_of_all_hooks(
    layers: ActivationCache, make_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(TOPK, hook="all", steps=2)
    memory = plan_run(config, layers).memory
    assert memory.batches == 2 * 4 * 256 * 9 * 12
    assert memory.weights == 9 * 4 * (96 * 25 + 12)
    caplog.set_level("INFO")
    run(config, layers, tmp_path / "run")
    assert re.search(r"the run takes .* batches of several hooks 2\d\d", caplog.text)
    skip = make_config(TOPK, hook="mlp_in.2", target={"hook": "mlp_out.2", "skip": True})
    assert plan_run(skip, layers).memory.weights == 4 * (96 * 25 + 12 + 12 + 144)
