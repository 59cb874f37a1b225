"""What the files say of where the SAE comes from."""

import json
from pathlib import Path

import pytest

from saecache.evaluate.export import export_sae
from saecache.evaluate.export.metadata import Provenance
from saecache.store.reading.reader import ActivationCache

from .conftest import D_MODEL, LATENTS, Trained


def read(path: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads(path.read_text("utf-8"))
    return values


def test_saelens_with_the_cache(trained: Trained, cache: ActivationCache, tmp_path: Path) -> None:
    export = export_sae(trained("topk", "unit"), "saelens", tmp_path / "out", cache=cache)
    config = read(tmp_path / "out" / "cfg.json")
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "topk",
        "d_in": D_MODEL,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm",
        "reshape_activations": "none",
        "k": 4,
        "rescale_acts_by_decoder_norm": False,
    }
    assert isinstance(metadata, dict)
    notes = metadata.pop("saecache")
    assert metadata == {
        "sae_lens_version": "6.54.12",
        "model_name": "toy",
        "model_class_name": "HookedTransformer",
        "hook_name": "blocks.3.hook_resid_post",
        "context_size": cache.manifest.context,
        "dataset_path": "toy/text",
        "prepend_bos": True,
    }
    assert notes["cfg"] == read(trained("topk", "unit") / "cfg.json")
    assert notes["feature_factor"] == pytest.approx((D_MODEL - 1) ** 0.5)
    assert export.unknown == []


def test_without_the_cache_what_is_unknown_is_said(trained: Trained, tmp_path: Path) -> None:
    export = export_sae(trained("topk", "scale"), "saelens", tmp_path / "out")
    assert export.unknown == ["context", "dataset", "prepend_bos"]
    metadata = read(tmp_path / "out" / "cfg.json")["metadata"]
    assert isinstance(metadata, dict)
    assert (metadata["context_size"], metadata["dataset_path"], metadata["prepend_bos"]) == (None, None, None)


def test_dictionary_learning_and_sparsify(trained: Trained, cache: ActivationCache, tmp_path: Path) -> None:
    export_sae(trained("topk", "scale"), "dictionary_learning", tmp_path / "a", cache=cache)
    config = read(tmp_path / "a" / "config.json")
    trainer = config["trainer"]
    assert isinstance(trainer, dict)
    assert trainer["dict_class"] == "AutoEncoderTopK" and trainer["k"] == 4
    assert (trainer["activation_dim"], trainer["dict_size"]) == (D_MODEL, LATENTS)
    assert (trainer["layer"], trainer["lm_name"]) == (3, "toy")
    assert config["buffer"] == {
        "d_submodule": D_MODEL,
        "io": "out",
        "ctx_len": cache.manifest.context,
        "dataset": "toy/text",
        "prepend_bos": True,
    }
    export_sae(trained("topk", "scale"), "sparsify", tmp_path / "b", cache=cache)
    config = read(tmp_path / "b" / "cfg.json")
    assert config == {
        "activation": "topk",
        "expansion_factor": LATENTS // D_MODEL,
        "normalize_decoder": True,
        "num_latents": LATENTS,
        "k": 4,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_MODEL,
    }
    report = read(tmp_path / "b" / "saecache-export.json")  # sparsify would print what it does not know
    assert report["provenance"] == {
        "model": "toy",
        "hook": "resid_post.3",
        "context": cache.manifest.context,
        "dataset": "toy/text",
        "prepend_bos": True,
    }


@pytest.mark.parametrize(
    ("hook", "name", "layer"),
    [
        ("resid_pre.0", "blocks.0.hook_resid_pre", 0),
        ("resid_post.11", "blocks.11.hook_resid_post", 11),
        ("attn_out.2", "blocks.2.hook_attn_out", 2),
        ("mlp_out.2", "blocks.2.hook_mlp_out", 2),
        ("gpt_neox.layers.3.mlp", None, None),
    ],
)
def test_hooks_in_the_words_of_transformer_lens(hook: str, name: str | None, layer: int | None) -> None:
    provenance = Provenance(model=None, hook=hook, context=None, dataset=None, prepend_bos=None)
    assert (provenance.transformer_lens_hook, provenance.layer) == (name, layer)
