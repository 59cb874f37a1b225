"""``init``: a run that starts from a trained SAE, ours or another library's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.common.errors import UsageError
from saecache.store import CacheWriter, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes
from saecache.testing.sparse_rows import D_MODEL
from saecache.train import SAE, TrainConfig, load_sae, run
from saecache.train.engine.metrics import heldout_metrics
from saecache.train.runs.folder import RUN_FILE
from saecache.train.runs.planning import plan_run
from saecache.train.variants import VARIANTS

from ..foreign.layouts import D, layouts, parts, rows

MakeConfig = Callable[..., TrainConfig]
TINY_RATE = {"learning_rate": 1e-30}  # no float32 weight moves
KINDS = {
    kind: {"kind": kind, "name": kind} | ({"k": 4} if "k" in made.model_fields else {})
    for kind, made in VARIANTS.items()
}


@pytest.fixture(scope="module")
def trained(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SAEs of every kind, trained for a moment on unit rows."""
    settings = {
        "variants": list(KINDS.values()),
        "num_latents": 64,
        "batch_rows": 256,
        "steps": 20,
        "device": "cpu",
        "normalization": "unit",
        "optimizer": {"learning_rate": 0.01},
        "log": {"progress": False},
    }
    return dict(
        run(TrainConfig.model_validate(settings), cache, tmp_path_factory.mktemp("start") / "run").saes
    )


@pytest.fixture
def start(make_config: MakeConfig) -> MakeConfig:
    """A config that starts from ``init``, without num_latents."""

    def make(variant: dict[str, Any], init: Path | str, **settings: Any) -> TrainConfig:
        given = {"init": str(init), "num_latents": None, "normalization": "unit", **settings}
        return make_config(variant, **given)

    return make


def heldout(sae: SAE, cache: ActivationCache) -> dict[str, Any]:
    index = torch.arange(cache.num_rows("heldout")).numpy()
    return heldout_metrics(sae, cache.rows(sae.cfg.hook, index, "heldout", sae.cfg.normalization["kind"]))


@pytest.mark.parametrize("kind", KINDS)
def test_without_learning_the_sae_stays_what_it_was(
    kind: str, trained: dict[str, Path], cache: ActivationCache, start: MakeConfig, tmp_path: Path
) -> None:
    variant = KINDS[kind]
    if kind == "feature_choice":
        variant = variant | {
            "threshold": {"counted_share": None}
        }  # counting corrects from the first batch on
    config = start(variant, trained[kind], steps=1, optimizer=TINY_RATE)
    sae = load_sae(run(config, cache, tmp_path / "run").saes[kind])
    before, after = heldout(load_sae(trained[kind]), cache), heldout(sae, cache)
    assert after["heldout_fvu"] == pytest.approx(
        before["heldout_fvu"], rel=2e-2
    )  # thresholds move by one batch
    assert after["heldout_l0"] == pytest.approx(before["heldout_l0"], rel=3e-2)
    assert torch.allclose(sae.W_enc, load_sae(trained[kind]).W_enc, atol=1e-6)
    assert sae.cfg.training["init"]["kind"] == kind
    assert sae.cfg.num_latents == 64


def test_the_first_step_begins_exactly_where_the_sae_was(
    trained: dict[str, Path], cache: ActivationCache, start: MakeConfig, tmp_path: Path
) -> None:
    config = start(KINDS["topk"], trained["topk"], steps=1, optimizer=TINY_RATE, normalization="unit")
    sae, before = load_sae(run(config, cache, tmp_path / "run").saes["topk"]), load_sae(trained["topk"])
    for name, tensor in before.named_buffers():
        limit = 1e-7 if name == "W_dec" else 0  # whose rows are divided by their norms once more
        assert float((sae.get_buffer(name) - tensor).abs().max()) <= limit, name


@pytest.mark.parametrize(
    "name", ["saelens_jumprelu", "saelens_gated", "saelens_topk", "dictionary_batch", "sparsify"]
)
def test_training_goes_on_from_another_library(name: str, start: MakeConfig, tmp_path: Path) -> None:
    """Rows of the run are scaled, those of the SAE are not: biases and thresholds change, codes do not."""
    cache = foreign_cache(tmp_path / "cache")
    layout = layouts()[name]
    if name in ("saelens_topk", "dictionary_batch", "sparsify"):  # kinds that compare latents
        norms = parts()["W_dec"].norm(dim=1)
        for key, by_latent in (("W_dec", norms[:, None]), ("decoder.weight", norms)):
            if key in layout.tensors:
                layout.tensors[key] = layout.tensors[key] / by_latent
    folder = layout.write(tmp_path / "theirs")
    theirs = load_sae(folder)
    variant = {
        "saelens_jumprelu": {"kind": "jumprelu", "threshold_scale": "linear"},
        "saelens_gated": {"kind": "gated"},
        "dictionary_batch": {
            "kind": "batch_topk",
            "k": 5,
            "threshold": {"start_step": 0, "momentum": 0.999999},
        },
    }.get(name, {"kind": "topk", "k": 5})
    settings = {"hook": "resid_post.3", "normalization": "scale", "steps": 2, "batch_rows": 64}
    config = start(variant, folder, optimizer=TINY_RATE, **settings)
    (path,) = run(config, cache, tmp_path / "run").saes.values()
    sae, x = load_sae(path), rows()
    assert sae.normalizer.kind == "scale"
    assert torch.allclose(sae(x, input="raw"), theirs(x, input="raw"), atol=1e-3)
    assert torch.equal(sae.encode(x, input="raw") != 0, theirs.encode(x, input="raw") != 0)
    longer = start(variant, folder, optimizer={"learning_rate": 0.01}, **settings | {"steps": 60})
    (path,) = run(longer, cache, tmp_path / "longer").saes.values()
    assert heldout(load_sae(path), cache)["heldout_fvu"] < 0.5 * heldout(sae, cache)["heldout_fvu"]


def foreign_cache(path: Path) -> ActivationCache:
    with CacheWriter(
        path, hooks={"resid_post.3": D, "other": D}, identity={}, heldout_fraction=0.2
    ) as writer:
        writer.write_rows({"resid_post.3": rows(800), "other": rows(800)})
    return open_cache(path)


def test_resuming_gives_the_bytes_of_an_uninterrupted_run(
    trained: dict[str, Path], cache: ActivationCache, start: MakeConfig, tmp_path: Path
) -> None:
    settings = {"steps": 6, "checkpoint": {"every_steps": 2}}
    config = start(KINDS["batch_topk"], trained["batch_topk"], **settings)
    whole = run(config, cache, tmp_path / "whole")
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    cut = tmp_path / "cut"
    shutil.rmtree(cut / "batch_topk" / "sae")
    shutil.rmtree(cut / "batch_topk" / "checkpoints" / "step_00000006")
    record = json.loads((cut / RUN_FILE).read_text())
    (cut / RUN_FILE).write_text(json.dumps(record | {"finished": False}))
    resumed = run(config, cache, cut)
    assert not resumed.reused
    assert folder_bytes(resumed.saes["batch_topk"]) == folder_bytes(whole.saes["batch_topk"])
    assert record["config"]["init"]["kind"] == "batch_topk"


def test_the_run_is_told_by_the_weights_and_not_by_the_path(
    trained: dict[str, Path], cache: ActivationCache, start: MakeConfig, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    copied = shutil.copytree(trained["topk"], tmp_path / "elsewhere")
    first = run(start(KINDS["topk"], trained["topk"], steps=1), cache)
    again = run(start(KINDS["topk"], copied, steps=1), cache)
    assert again.reused and again.run_dir == first.run_dir
    sae = load_sae(copied)
    sae.b_dec[0] += 1
    sae.save(copied)
    with pytest.raises(UsageError, match=r"holds another run.*(\n.*)*weights_sha256"):
        run(start(KINDS["topk"], copied, steps=1), cache, first.run_dir)
    assert run(start(KINDS["topk"], copied, steps=1), cache).run_dir != first.run_dir


def test_runs_of_before_there_was_init_go_on(
    cache: ActivationCache, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"kind": "topk", "k": 3}, steps=1)
    done = run(config, cache, tmp_path / "run")
    record = json.loads((done.run_dir / RUN_FILE).read_text())
    del record["config"]["init"]
    (done.run_dir / RUN_FILE).write_text(json.dumps(record))
    assert run(config, cache, tmp_path / "run").reused


@pytest.mark.parametrize(
    ("kind", "variant", "settings", "message"),
    [
        ("topk", {"kind": "topk"}, {"normalization": "none"}, "the run's 'none': set normalization=unit"),
        ("topk", {"kind": "topk"}, {"num_latents": 65}, "init has num_latents 64, the variant 65"),
        ("gated", {"kind": "topk"}, {}, "init is a gated SAE, whose gates a topk"),
        ("topk", {"kind": "probabilistic_topk"}, {}, "has an encoder bias, and prob"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_first_step(
    kind: str,
    variant: dict[str, Any],
    settings: dict[str, Any],
    message: str,
    trained: dict[str, Path],
    cache: ActivationCache,
    start: MakeConfig,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=message):
        run(start({**variant, "k": 4}, trained[kind], **settings), cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_initial_values_have_no_effect(start: MakeConfig, trained: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"initialisation has no effect .* set initialisation=\{\}"):
        start(KINDS["topk"], trained["topk"], initialisation={"encoder_norm": 1.0})
    assert start(KINDS["topk"], trained["topk"], initialisation={}).init == str(trained["topk"])


def test_hooks_and_decoder_norms_are_compared(
    cache: ActivationCache, start: MakeConfig, tmp_path: Path
) -> None:
    folder = layouts()["saelens_topk"].write(tmp_path / "theirs")
    other = foreign_cache(tmp_path / "cache")
    settings: dict[str, Any] = {"normalization": "none", "batch_rows": 64}
    with pytest.raises(UsageError, match=r"init is an SAE of hook resid_post.3, and the run trains on other"):
        plan_run(start({"kind": "topk", "k": 5}, folder, hook="other", **settings), other)
    with pytest.raises(UsageError, match=rf"init has width {D}, the variant {D_MODEL}"):
        plan_run(start({"kind": "topk", "k": 5}, folder, hook="resid", **settings), cache)
    with pytest.raises(UsageError, match=r"decoder rows of norms 0\.\d+ to 1\.\d+, and topk keeps them at 1"):
        plan_run(start({"kind": "topk", "k": 5}, folder, **settings), other)
    free = start({"kind": "relu", "decoder": "free"}, folder, **settings)
    assert plan_run(free, other).hook == "resid_post.3", "the cache has two hooks; init says which"
    with pytest.raises(UsageError, match="init: no SAE in"):
        plan_run(start({"kind": "topk", "k": 5}, tmp_path / "absent", **settings), other)
