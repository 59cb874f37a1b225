"""PEFT adapters: part of the model and of its identity; what peft computes is what a harvest reads."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import UsageError
from saecache.harvest import HarvestConfig, LanguageModel, load_model_of
from saecache.harvest.model import adapter
from saecache.harvest.model.adapter import locate_adapter
from saecache.harvest.model.config import AdapterConfig
from saecache.harvest.runner import run
from saecache.store import ActivationCache, open_cache
from saecache.train.sae import SAE
from tests.test_steering import make_sae

MakeConfig = Callable[..., HarvestConfig]
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="needs peft")


def write_files(folder: Path, kind: str = "LORA") -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 4}))
    save_file({"x": torch.zeros(2)}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def as_if_peft_were_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda _name: object())


def test_missing_package_is_said_first(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda _name: None)
    config = make_config()
    model = config.model.model_copy(
        update={"adapter": AdapterConfig(name=str(write_files(tmp_path / "lora")))}
    )
    monkeypatch.setattr(LanguageModel, "from_files", None)
    with pytest.raises(UsageError, match=r"needs peft: pip install 'saecache\[peft\]'"):
        run(config.model_copy(update={"model": model}), tmp_path / "cache")


@pytest.mark.usefixtures("as_if_peft_were_here")
def test_bad_adapters_are_named(tmp_path: Path) -> None:
    def bad(match: str, name: Path | str, **settings: Any) -> None:
        with pytest.raises(UsageError, match=match):
            locate_adapter(AdapterConfig(name=str(name), **settings))

    good = write_files(tmp_path / "good")
    bad("no such folder", tmp_path / "nothing")
    bad("revision='main' has no effect", good, revision="main")
    bad("kind PREFIX_TUNING, which adds positions", write_files(tmp_path / "prefix", "PREFIX_TUNING"))
    pickled = write_files(tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    bad("has no adapter_model.safetensors.*Pickled weights", pickled)
    cut = write_files(tmp_path / "cut")
    weights = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(weights[:-1])
    bad("damaged or incomplete", cut)
    (cut / "adapter_config.json").write_text("[]")
    bad(r"adapter_config\.json cannot be used", cut)


@pytest.mark.usefixtures("as_if_peft_were_here")
def test_identity_is_of_the_files(tmp_path: Path) -> None:
    first = write_files(tmp_path / "lora")
    found = locate_adapter(AdapterConfig(name=str(first)))
    assert found.identity() == {"name": "lora", "revision": None, "sha256": found.sha256}
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "lora"
    shutil.copytree(first, copy)
    assert locate_adapter(AdapterConfig(name=str(copy))).identity() == found.identity()
    (copy / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    assert locate_adapter(AdapterConfig(name=str(copy))).sha256 != found.sha256


def check_inspect(cache: ActivationCache, folder: Path, tmp_path: Path) -> None:
    """The command reads the adapted model, wherever both are now."""
    sae = make_sae(cache.d_model("mlp_out.2"), "none", "mlp_out.2")
    facts = {"model": cache.manifest.identity["model"]}
    SAE(sae.cfg.model_copy(update={"cache": facts}), dict(sae.named_buffers())).save(tmp_path / "sae")
    command = ["inspect", str(tmp_path / "sae"), "some words", "--model", str(folder), "--device", "cpu"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "elsewhere now, give its place as adapter=" in refused.stderr
    done = CliRunner().invoke(app, [*command, "--json", "--adapter", str(tmp_path / "moved")])
    assert done.exit_code == 0, done.output
    model = load_model_of(cache, adapter=str(tmp_path / "moved"), device="cpu")
    tokens = json.loads(done.stdout)["tokens"]
    ids = [model.tokenizer.bos_token_id, *(token["id"] for token in tokens)]
    rows = model.activations(torch.tensor([[i for i in ids if i is not None]]), ["mlp_out.2"])["mlp_out.2"][0]
    best = sae.encode(rows, input="raw").abs().max(1).values[-len(tokens) :]
    shown = [abs(token["latents"][0]["activation"]) for token in tokens]
    assert shown == pytest.approx(best.tolist(), rel=1e-5)


@needs_peft
@pytest.mark.filterwarnings("ignore")  # of peft, about adapters of its own
def test_a_harvest_reads_the_adapted_model(
    make_config: MakeConfig, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = model_folder("llama")
    torch.manual_seed(1)
    settings = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "o_proj", "down_proj"], init_lora_weights=False
    )
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), settings).eval()
    tuned.save_pretrained(tmp_path / "lora")

    plain = make_config("llama", heldout_fraction=0)
    named = {"adapter": AdapterConfig(name=str(tmp_path / "lora"))}
    config = plain.model_copy(update={"model": plain.model.model_copy(update=named)})
    cache = open_cache(run(config, tmp_path / "cache").path)
    before = open_cache(run(plain, tmp_path / "plain").path)
    assert "adapter" not in before.manifest.identity["model"]
    assert cache.manifest.identity["model"]["adapter"]["name"] == "lora"
    assert cache.fingerprint != before.fingerprint

    ids = torch.from_numpy(cache.tokens[:4].astype(np.int64))
    model = load_model_of(cache, device="cpu")
    with torch.no_grad():
        expected = tuned(input_ids=ids).logits
    torch.testing.assert_close(model.logits(ids), expected, rtol=1e-4, atol=1e-4)
    first = int(cache.token_index("train")[0])
    row = cache.rows("mlp_out.2", [0], normalization="none")[0]
    read = model.activations(
        torch.from_numpy(cache.tokens[first // 16][None].astype(np.int64)), ["mlp_out.2"]
    )
    own = read["mlp_out.2"][0, first % 16]
    torch.testing.assert_close(row, own, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(row, before.rows("mlp_out.2", [0], normalization="none")[0], atol=5e-2)

    (tmp_path / "lora").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="no such folder"):
        load_model_of(cache, device="cpu")
    assert load_model_of(cache, adapter=str(tmp_path / "moved"), device="cpu").num_layers == 4
    check_inspect(cache, folder, tmp_path)
    with pytest.raises(UsageError, match="harvested without an adapter"):
        load_model_of(before, adapter=str(tmp_path / "moved"), device="cpu")
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UsageError, match="is not the adapter of"):
        load_model_of(cache, adapter=str(tmp_path / "moved"), device="cpu")


@needs_peft
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_model(
    make_config: MakeConfig, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    config = make_config("neox")
    named = {"adapter": AdapterConfig(name=str(tmp_path / "lora"))}
    config = config.model_copy(update={"model": config.model.model_copy(update=named)})
    with pytest.raises(UsageError, match=r"cannot be put into the model .*Is it an adapter of this model"):
        run(config, tmp_path / "cache")
