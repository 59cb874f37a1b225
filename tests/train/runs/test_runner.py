"""Whole runs: one pass for several variants, finished runs, folders that hold something else, failures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.common.errors import SaecacheError, UsageError
from saecache.configs import list_recipes, load_config
from saecache.store import CacheWriter
from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes, metrics
from saecache.train import TrainConfig, load_sae, run

TOPK, BATCH_TOPK = {"kind": "topk", "k": 4}, {"kind": "batch_topk", "k": 4}
FEATURE_CHOICE = {"kind": "feature_choice", "k": 4}


def test_variants_in_one_pass_equal_separate_runs(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    variants = [TOPK, BATCH_TOPK, FEATURE_CHOICE]
    together = run(make_config(*variants), cache, tmp_path / "together")
    assert list(together.saes) == ["topk_k4", "batch_topk_k4", "feature_choice_k4"]
    for variant in variants:
        (name, alone), *_ = run(make_config(variant), cache, tmp_path / str(variant["kind"])).saes.items()
        assert folder_bytes(together.saes[name]) == folder_bytes(alone)


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread is all there is")
def test_the_number_of_threads_changes_no_byte(
    make_cache: Callable[..., ActivationCache], make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    cache, before = make_cache(num_rows=9000, d_model=40), torch.get_num_threads()
    config = make_config(TOPK, BATCH_TOPK, FEATURE_CHOICE, num_latents=640, batch_rows=2048)
    try:
        torch.set_num_threads(1)
        one = run(config, cache, tmp_path / "one thread")
    finally:
        torch.set_num_threads(before)
    all_of_them = run(config, cache, tmp_path / "all threads")
    for name, folder in one.saes.items():
        assert folder_bytes(folder) == folder_bytes(all_of_them.saes[name])


def test_a_run_leaves_what_the_contract_says(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    result = run(make_config(TOPK, BATCH_TOPK, normalization="layer_norm"), cache, tmp_path / "run")
    assert (result.run_dir, result.failed, result.reused) == (tmp_path / "run", {}, False)
    lines = metrics(tmp_path / "run")
    assert [(line["step"], line["variant"]) for line in lines] == [
        (step, name) for step in (2, 4, 6, 8) for name in ("topk_k4", "batch_topk_k4")
    ]
    for key in (
        "rows",
        "loss",
        "fvu",
        "l0",
        "dead",
        "alive",
        "grad_norm",
        "lr",
        "rows_per_second",
        "data_wait_fraction",
    ):
        assert all(key in line for line in lines)
    assert all(line["rows"] == 256 * line["step"] for line in lines)
    assert "threshold" in lines[1] and "threshold" not in lines[0]
    assert [("heldout_fvu" in line) for line in lines] == [False] * 6 + [True] * 2
    sae = load_sae(result.saes["batch_topk_k4"])
    assert (sae.cfg.kind, sae.cfg.name, sae.cfg.hook, sae.cfg.k) == (
        "batch_topk",
        "batch_topk_k4",
        "resid",
        4,
    )
    assert sae.cfg.cache["fingerprint"] == cache.fingerprint
    assert sae.cfg.normalization["kind"] == "layer_norm"
    assert sae.cfg.training["step"] == 8
    heldout = cache.rows("resid", range(cache.num_rows("heldout")), "heldout", "layer_norm")
    fvu = float((sae(heldout) - heldout).square().sum() / (heldout - heldout.mean(0)).square().sum())
    assert lines[-1]["heldout_fvu"] == pytest.approx(fvu, rel=1e-4)


def test_a_finished_run_is_left_alone(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(TOPK)
    first = run(config, cache, tmp_path / "run")
    before = folder_bytes(tmp_path / "run")
    second = run(config, cache.path, tmp_path / "run")
    assert second.reused and second.saes == first.saes
    assert folder_bytes(tmp_path / "run") == before


def test_another_config_or_cache_is_refused_and_named(
    cache: ActivationCache,
    make_cache: Callable[..., ActivationCache],
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    run(make_config(TOPK), cache, tmp_path / "run")
    with pytest.raises(UsageError, match=r"(?s)holds another run.*config.batch_rows: 256 there, 128 here"):
        run(make_config(TOPK, batch_rows=128), cache, tmp_path / "run")
    with pytest.raises(UsageError, match=r"config.variants.0.k: 4 there, 5 here"):
        run(make_config({**TOPK, "k": 5}), cache, tmp_path / "run")
    other = make_cache(seed=1)
    with pytest.raises(UsageError, match=rf"cache.fingerprint: '{cache.fingerprint}' there"):
        run(make_config(TOPK), other, tmp_path / "run")
    quiet = make_config(TOPK, log={"every_steps": 2, "progress": True})
    assert run(quiet, cache, tmp_path / "run").reused  # how a run is shown does not make it another
    often = make_config(TOPK, checkpoint={"every_steps": 1, "keep": 3})
    assert run(often, cache, tmp_path / "run").reused  # nor does what a preempted machine needs


def test_settings_may_be_a_mapping(cache: ActivationCache, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"variants": [TOPK], "steps": 2, "batch_rows": 64, "num_latents": 48}
    assert list(run(settings, cache, tmp_path / "run").saes) == ["topk_k4"]
    with pytest.raises(UsageError, match=r"steps_: unknown key \(did you mean 'steps'\?\)"):
        run(settings | {"steps_": 2}, cache, tmp_path / "run")
    with pytest.raises(UsageError, match="config is not a valid TrainConfig"):
        run("topk", cache, tmp_path / "run")  # type: ignore[arg-type]


def test_a_run_of_version_0_1_is_still_the_same_run(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(
        {"kind": "mutual_choice", "k": 4, "nfm_inf": {"coefficient": 0.1}},
        {"kind": "feature_choice", "k": 4, "threshold": {"counted_share": None}},
        steps=2,
    )
    run(config, cache, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    former = json.loads(path.read_text())
    mutual, feature = former["config"]["variants"]
    mutual["nfm_inf"]["include_diagonal"] = False
    del mutual["aux_zipf"]["without_dead"], mutual["threshold"]["counted_share"]
    del feature["threshold"]["counted_share"]
    del former["config"]["target"], former["config"]["crosscoder"]
    del former["config"]["initialisation"]["decoder"]
    path.write_text(json.dumps(former))
    assert run(config, cache, tmp_path / "run").reused


@pytest.mark.parametrize("recipe", [r.name for r in list_recipes("train") if r.name != "demo"])
def test_shipped_recipes_train_from_a_cache_without_heldout_rows(
    recipe: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    hooks = [f"{kind}.{layer}" for kind in ("mlp_in", "mlp_out", "resid_post") for layer in (0, 1)]
    with CacheWriter(tmp_path / "cache", hooks=dict.fromkeys(hooks, 16), identity={}) as writer:
        writer.write_rows({hook: rows + i for i, hook in enumerate(hooks)})
    settings = ["num_latents=48", "batch_rows=128", "steps=2", "log.progress=false"]
    if recipe != "cross_layer_transcoder":  # JumpReLU has no k
        settings.append("variants.0.k=4")
    config = load_config(TrainConfig, recipe, settings, kinds=("train",))
    if config.hook is None:
        config = config.model_copy(update={"hook": "resid_post.1"})
    assert config.log.heldout_every_steps is not None
    result = run(config, tmp_path / "cache", tmp_path / "run")
    assert result.saes and not result.failed
    assert "no held-out rows: heldout_fvu and heldout_l0 are not measured" in caplog.text
    assert all("heldout_fvu" not in line for line in result.last_lines.values())
    saes = [load_sae(folder).cfg for folder in result.saes.values()]
    if recipe == "transcoder":
        hooks_of = [(cfg.hook, cfg.target and cfg.target.hook) for cfg in saes]
        assert hooks_of == [("mlp_in.0", "mlp_out.0"), ("mlp_in.1", "mlp_out.1")]
    elif recipe == "cross_layer_transcoder":
        assert [cfg.hook for cfg in saes] == ["mlp_in.0+mlp_in.1"]
        assert [part.hook for part in saes[0].predicted] == ["mlp_out.0", "mlp_out.1"]
    elif recipe == "crosscoder":
        assert [cfg.hook for cfg in saes] == ["resid_post.0+resid_post.1"]
    else:
        assert [cfg.hook for cfg in saes] == ["resid_post.1"]


@pytest.mark.parametrize("content", ["a file", "a folder with a file"])
def test_folders_of_something_else_are_never_touched(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path, content: str
) -> None:
    out = tmp_path / "mine"
    if content == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"must name a folder|is not empty and holds no training run"):
        run(make_config(TOPK), cache, out)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["precious"]


def test_two_processes_do_not_share_a_folder(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UsageError, match="written by another process"):
        run(make_config(TOPK), cache, tmp_path / "run")


def test_a_failing_variant_stops_alone(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wild = {**BATCH_TOPK, "name": "wild", "optimizer": {"learning_rate": 1e37}}
    config = make_config(TOPK, wild, checkpoint={"every_steps": 1, "keep": 2})
    result = run(config, cache, tmp_path / "run")
    assert list(result.saes) == ["topk_k4"]
    assert "variant wild stopped" in caplog.text
    assert "(batch 1 of epoch 0)" in result.failed["wild"] and "in step 2" in result.failed["wild"]
    assert not (tmp_path / "run" / "wild" / "sae").exists()
    last_good = load_sae(tmp_path / "run" / "wild" / "checkpoints" / "step_00000001")
    assert last_good.cfg.training["step"] == 1
    alone = run(make_config(TOPK), cache, tmp_path / "alone").saes["topk_k4"]
    assert folder_bytes(alone) == folder_bytes(result.saes["topk_k4"])
    assert run(config, cache, tmp_path / "run").failed == result.failed


def test_when_all_fail_the_run_ends(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(TOPK, optimizer={"learning_rate": 1e37}, steps=500)
    result = run(config, cache, tmp_path / "run")
    assert result.saes == {} and list(result.failed) == ["topk_k4"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_a_failure_is_repeated_after_resuming_from_before_it(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    wild = {**TOPK, "name": "wild", "optimizer": {"learning_rate": 1e37}}
    config = make_config(TOPK, wild)
    result = run(config, cache, tmp_path / "run")
    run_json = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**run_json, "finished": False}))
    again = run(config, cache, tmp_path / "run")
    assert again.failed == result.failed and list(again.saes) == ["topk_k4"]


def test_default_folder_is_the_same_for_the_same_run(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    first = run(make_config(TOPK), cache)
    assert first.run_dir.parent == Path("runs") and first.run_dir.name.startswith("topk_k4-")
    assert run(make_config(TOPK), cache).reused
    assert not run(make_config(TOPK, seed=1), cache).reused


def test_a_full_disk_is_reported_and_the_run_goes_on_later(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from saecache.train.runs import checkpoint

    calls = 0

    def full(*args: Any) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        return write(*args)

    write = checkpoint.write_tensors
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(SaecacheError, match="No space left on device: fix this and run again"):
            run(make_config(TOPK), cache, tmp_path / "run")
    again = run(make_config(TOPK), cache, tmp_path / "run")
    alone = run(make_config(TOPK), cache, tmp_path / "alone")
    assert folder_bytes(again.saes["topk_k4"]) == folder_bytes(alone.saes["topk_k4"])


def test_a_run_within_inference_mode_is_the_usual_one(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(TOPK, BATCH_TOPK)
    with torch.inference_mode():
        within = run(config, cache, tmp_path / "within")
    usual = run(config, cache, tmp_path / "usual")
    for name, folder in usual.saes.items():
        assert folder_bytes(within.saes[name]) == folder_bytes(folder)


@pytest.mark.parametrize("number_type", [torch.float64, torch.bfloat16])
def test_the_default_number_type_changes_no_byte(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    number_type: torch.dtype,
) -> None:
    config = make_config(TOPK, BATCH_TOPK)
    usual = run(config, cache, tmp_path / "usual")
    codes = load_sae(usual.saes["topk_k4"]).encode(cache.rows("resid", range(40)))
    torch.set_default_dtype(number_type)
    try:
        other = run(config, cache, tmp_path / "other")
        assert torch.get_default_dtype() == number_type
        sae = load_sae(other.saes["topk_k4"])
        assert torch.equal(sae.encode(cache.rows("resid", range(40))), codes)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, folder in usual.saes.items():
        assert folder_bytes(other.saes[name]) == folder_bytes(folder)


def test_the_default_device_changes_no_byte(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(TOPK, BATCH_TOPK, device="cpu")
    usual = run(config, cache, tmp_path / "usual")
    codes = load_sae(usual.saes["topk_k4"]).encode(cache.rows("resid", range(40)))
    with torch.device("meta"):
        other = run(config, cache, tmp_path / "other")
        found = load_sae(other.saes["topk_k4"]).encode(cache.rows("resid", range(40)))
    assert torch.equal(found, codes)
    for name, folder in usual.saes.items():
        assert folder_bytes(other.saes[name]) == folder_bytes(folder)
