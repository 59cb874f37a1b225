"""Loading a model: what is refused, and what is hashed."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saecache.common.errors import UsageError
from saecache.evaluate.config import EvaluateConfig
from saecache.harvest import HarvestConfig, LanguageModel, load_model_of
from saecache.harvest.model.config import ModelConfig
from saecache.harvest.model.files import fetch_weights, locate_model, weights_sha256
from saecache.harvest.runner import run
from saecache.pipeline import evaluate
from saecache.store import open_cache
from saecache.train import TrainConfig
from saecache.train import run as train

ModelFolder = Callable[[str], Path]


@pytest.fixture
def copy(model_folder: ModelFolder, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder("neox"), tmp_path / "copy")


def load(folder: Path) -> LanguageModel:
    return LanguageModel.load(str(folder), dtype="float32", device="cpu")


def test_what_a_loaded_model_knows(model_folder: ModelFolder) -> None:
    model = load(model_folder("neox"))
    assert (model.name, model.revision, model.num_layers, model.max_positions) == ("tiny-neox", None, 4, 64)
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert not model.model.training and not any(p.requires_grad for p in model.model.parameters())
    assert model.tokenizer.decode(model.tokenizer("a fox")["input_ids"]) == "a fox"
    weights = (model_folder("neox") / "model.safetensors").read_bytes()
    assert model.weights_sha256 == hashlib.sha256(weights).hexdigest()


def test_small_models_run_in_float32_on_a_cpu(model_folder: ModelFolder) -> None:
    assert LanguageModel.load(str(model_folder("neox")), device="cpu").dtype == torch.float32


def test_logits_are_the_model_s(model_folder: ModelFolder) -> None:
    model = load(model_folder("qwen3"))
    ids = torch.randint(0, 300, (2, 9))
    with torch.no_grad():
        assert torch.equal(model.logits(ids), model.model(ids).logits)
    assert torch.equal(model.logits(ids.int().numpy()), model.logits(ids))


def test_ids_that_cannot_be(model_folder: ModelFolder) -> None:
    model = load(model_folder("neox"))
    with pytest.raises(UsageError, match=r"expected shape \[sequences, positions\], got \(3,\)"):
        model.logits([1, 2, 3])
    with pytest.raises(UsageError, match="65 positions are more than the 64"):
        model.logits(torch.zeros(1, 65))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such folder"),
        ("/nowhere", "no such folder"),
        ("builtin:other", "only built-in model is 'builtin:demo'"),
    ],
)
def test_no_such_model(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        locate_model(name)


@pytest.fixture
def package(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that ships a model and must not be imported."""
    package = tmp_path / "packages" / "with_a_model"
    shutil.copytree(copy, package / "models" / "neox")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(package.parent)
    return package.name


def test_a_model_that_a_package_ships(package: str, copy: Path) -> None:
    name = f"package:{package}/models/neox"
    found = LanguageModel.load(name, device="cpu", dtype="float32")
    assert found.name == name, "a cache must name it so that another machine finds it"
    assert found.weights_sha256 == load(copy).weights_sha256
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:", "expected 'package:<import name>/<path"),
        ("package:with_a_model", "expected 'package:<import name>/<path"),
        ("package:with_a_model/../copy", "expected 'package:<import name>/<path"),
        ("package:with_a_model//etc", "expected 'package:<import name>/<path"),
        ("package:with.a_model/models/neox", "expected 'package:<import name>/<path"),
        ("package:no_such_package/model.gguf", "no package 'no_such_package'; install it with pip"),
        ("package:json.py/model.gguf", "expected 'package:<import name>/<path"),
        ("package:with_a_model/models/other", r"no models/other in .*with_a_model"),
        ("package:with_a_model/models", r"without config\.json"),
    ],
)
def test_no_such_model_in_a_package(name: str, message: str, package: str) -> None:
    with pytest.raises(UsageError, match=message):
        locate_model(name)


def test_a_cache_finds_the_model_of_its_package_again(
    package: str, make_config: Callable[..., HarvestConfig], tmp_path: Path
) -> None:
    model = ModelConfig(name=f"package:{package}/models/neox", dtype="float32")
    config = make_config(num_tokens=200, heldout_fraction=0).model_copy(update={"model": model})
    cache = open_cache(run(config, tmp_path / "cache").path)
    assert "model_folder" not in cache.provenance, "the package may lie elsewhere on the next machine"
    assert load_model_of(cache, device="cpu").name == config.model.name


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without config\.json"):
        locate_model(str(tmp_path))


def test_a_revision_of_a_folder_is_refused(copy: Path) -> None:
    with pytest.raises(UsageError, match="revision='main' has no effect"):
        locate_model(str(copy), "main")


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no safetensors weights \(missing: model\.safetensors\)"):
        load(copy)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    removed = next(name for name in tensors if "layers.2.mlp" in name and name.endswith("weight"))
    save_file(
        {k: v for k, v in tensors.items() if k != removed}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UsageError, match=f"1 are missing or of another shape, such as {removed}"):
        load(copy)


def test_unreadable_settings(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"its config\.json cannot be used"):
        load(copy)
    (copy / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(UsageError, match=r"its config\.json cannot be used"):
        load(copy)


def test_several_weight_files(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, copy / file, {"format": "pt"})
    (copy / "model.safetensors").unlink()
    weight_map = {name: file for file, members in parts.items() for name in members}
    index = {"metadata": {}, "weight_map": weight_map}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    paths = fetch_weights(locate_model(str(copy)))
    assert [path.name for path in paths] == ["a.safetensors", "b.safetensors"]
    lines = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in paths)
    assert weights_sha256(reversed(paths)) == hashlib.sha256(lines.encode()).hexdigest()
    assert load(copy).num_layers == 4
    (copy / "b.safetensors").unlink()
    with pytest.raises(UsageError, match=r"missing: b\.safetensors"):
        load(copy)


def test_an_index_cannot_lead_elsewhere(copy: Path) -> None:
    index = {"weight_map": {"x": "../other.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="outside its folder"):
        load(copy)
    (copy / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UsageError, match="not a safetensors index"):
        load(copy)


def test_a_model_whose_folder_moved_is_measured_where_it_is_now(
    make_config: Callable[..., HarvestConfig], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(model_folder("gpt2"), tmp_path / "before")
    cache = open_cache(run(make_config(tmp_path / "before"), tmp_path / "cache").path)
    config = TrainConfig.model_validate(
        {"variants": [{"kind": "topk", "k": 4}], "hook": "resid_post.1", "num_latents": 64, "batch_rows": 64}
        | {"steps": 3, "log": {"progress": False}}
    )
    trained = train(config, cache, tmp_path / "run")
    (tmp_path / "before").rename(tmp_path / "now")
    settings = EvaluateConfig(ce_tokens=20, num_latents=0, all_latents=False)
    with pytest.raises(UsageError, match=r"evaluate --set model_folder=FOLDER.*--no-model measures without"):
        evaluate([trained.run_dir], cache.path, settings)
    moved = settings.model_copy(update={"model_folder": str(tmp_path / "now")})
    as_people_call_it = evaluate(
        str(trained.run_dir), cache, moved.model_dump(), out=str(tmp_path / "results.json")
    )
    (found,) = as_people_call_it.saes
    assert (tmp_path / "results.json").exists()
    assert found.language_model is not None and found.language_model.num_tokens >= 20
    other = settings.model_copy(update={"model_folder": str(model_folder("llama"))})
    with pytest.raises(UsageError, match="sha256"):
        evaluate([trained.run_dir], cache.path, other)
