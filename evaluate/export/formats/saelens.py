"""SAELens 6: ``cfg.json`` and ``sae_weights.safetensors``, read with ``SAE.load_from_disk``.

Written after sae_lens 6.54 (saes/*.py, loading/pretrained_sae_loaders.py). Its BatchTopK and Matryoshka exist
only in training: they, and every other rule with a threshold, become ``jumprelu`` with a threshold for each
latent. Its ``layer_norm`` divides by std + 1e-5, which makes small rows smaller than here, by 1e-5 / std. Its
``constant_norm_rescale`` is our ``rms_norm``; a row of zeros becomes NaN there.
"""

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ....store.durable import write_bytes
from ....train.foreign.saelens import CONFIG_FILE, WEIGHTS_FILE
from ....train.tensor_file import read_tensors, write_tensors
from ....train.variants.matryoshka import MatryoshkaBatchTopK
from ..format import Exportable, Format, Forward, Written
from ..metadata import make_notes
from ..rules import Form, integer_k
from ..space import Step
from ..transcoder import fold_transcoder

SAE_LENS_VERSION = "6.54.12"  # without it SAELens reads the files as those of version 5
EPS = 1e-5
_ARCHITECTURES: dict[Form, str] = {
    "relu": "standard",
    "topk": "topk",
    "threshold": "jumprelu",
    "gated": "gated",
}

_NORMALIZATIONS: dict[Step, str] = {"standardize": "layer_norm", "rms_norm": "constant_norm_rescale"}
_TRANSCODERS: dict[Form, str] = {"relu": "{}transcoder", "threshold": "jumprelu_{}transcoder"}


class SAELens(Format):
    """The folder that SAELens 6 loads with ``SAE.load_from_disk``."""

    forms: ClassVar[frozenset[Form]] = frozenset(_ARCHITECTURES)
    transcoder_forms: ClassVar[frozenset[Form]] = frozenset(_TRANSCODERS)
    steps: ClassVar[Mapping[Step, str]] = {
        "standardize": "SAELens adds 1e-5 to the standard deviation of a row, which shows where rows are "
        "small: --normalized-input exports an SAE of rows that you normalize yourself.",
        "rms_norm": "SAELens divides a row by its norm, so that a row of zeros becomes NaN: leave such rows "
        "out.",
    }

    def write(self, what: Exportable, folder: Path) -> Written:
        sae, target = what.sae, what.sae.cfg.target
        architecture = _ARCHITECTURES[what.rule.form] if target is None else _transcoder(what)
        write_tensors(folder / WEIGHTS_FILE, _tensors(what))
        config = {
            "architecture": architecture,
            "d_in": sae.cfg.d_model,
            "d_sae": sae.cfg.num_latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": target is None,
            **({} if target is None else {"d_out": target.d_model}),
            "normalize_activations": "none" if what.space.step is None else _NORMALIZATIONS[what.space.step],
            "reshape_activations": "none",
            **(
                {"k": integer_k(sae), "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
            ),
            "metadata": _metadata(what),
        }
        write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode("utf-8"))
        return Written(architecture=architecture)

    def read(self, folder: Path) -> Forward:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        tensors = read_tensors(folder / WEIGHTS_FILE)

        def forward(v: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = torch.zeros(()), torch.ones(())
            if config["normalize_activations"] == "layer_norm":
                mean = v.mean(-1, keepdim=True)
                std = (v - mean).std(-1, keepdim=True)
                v = (v - mean) / (std + EPS)
            elif config["normalize_activations"] == "constant_norm_rescale":
                std = v.norm(dim=-1, keepdim=True) / sqrt(v.shape[-1])
                v = v / std
            if "transcoder" in config["architecture"]:  # what it predicts is not scaled back
                features = _features(config, tensors, v @ tensors["W_enc"])
                skip = v @ tensors["W_skip"].T if "W_skip" in tensors else 0.0
                return features, features @ tensors["W_dec"] + tensors["b_dec"] + skip
            a = (v - tensors["b_dec"] * config["apply_b_dec_to_input"]) @ tensors["W_enc"]
            features = _features(config, tensors, a)
            return features, (features @ tensors["W_dec"] + tensors["b_dec"]) * std + mean

        return forward

    def loading(self, folder: Path) -> str:
        return f"from sae_lens import SAE; sae = SAE.load_from_disk({str(folder)!r})"


FORMAT = SAELens()


def _transcoder(what: Exportable) -> str:
    """SAELens's name for a transcoder of this rule."""
    target = what.sae.cfg.target
    return _TRANSCODERS[what.rule.form].format("skip_" if target is not None and target.skip else "")


def _tensors(what: Exportable) -> dict[str, Tensor]:
    sae, scaled = what.sae, what.space.scaled
    if sae.cfg.target is not None:
        folded = fold_transcoder(sae, what.space)
        return {**folded, "W_enc": folded["W_enc"].T}
    tensors = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_dec": scaled(sae.b_dec)}
    if what.rule.form == "gated":
        named = dict(sae.named_buffers())
        biases = {"b_gate": scaled(sae.b_enc), "b_mag": scaled(named["b_mag"])}
        return {**tensors, **biases, "r_mag": named["r_mag"]}
    tensors["b_enc"] = scaled(sae.b_enc)
    if what.rule.form == "threshold":
        assert sae.threshold is not None, "choose_rule has checked that"
        tensors["threshold"] = scaled(sae.threshold).expand(sae.cfg.num_latents)
    return tensors


def _metadata(what: Exportable) -> dict[str, Any]:
    sae, provenance = what.sae, what.provenance
    notes = make_notes(sae, feature_factor=what.space.factor, rows=what.space.rows)
    module_path = provenance.transformer_lens_hook is None
    metadata: dict[str, Any] = {
        "sae_lens_version": SAE_LENS_VERSION,
        "model_name": provenance.model,
        "model_class_name": "AutoModelForCausalLM" if module_path else "HookedTransformer",
        "hook_name": provenance.transformer_lens_hook or provenance.hook,
        "context_size": provenance.context,
        "dataset_path": provenance.dataset,
        "prepend_bos": provenance.prepend_bos,
        "saecache": notes,
    }
    if sae.cfg.target is not None:
        metadata["hook_name_out"] = provenance.transformer_lens_target or sae.cfg.target.hook
    if isinstance(sae.cfg.variant, MatryoshkaBatchTopK):
        metadata["matryoshka_widths"] = sae.cfg.variant.sizes(sae.cfg.num_latents)
    return metadata


def _features(config: dict[str, Any], tensors: dict[str, Tensor], a: Tensor) -> Tensor:
    """The features [B, F] that encode() returns; ``a`` [B, F] are pre-activations without bias."""
    if config["architecture"] == "gated":
        magnitude = a * tensors["r_mag"].exp() + tensors["b_mag"]
        return torch.relu(magnitude) * (a + tensors["b_gate"] > 0)
    pre = a + tensors["b_enc"]
    if config["architecture"].startswith("jumprelu"):
        return torch.relu(pre) * (pre > tensors["threshold"])
    if config["architecture"] == "topk":
        top = pre.topk(config["k"], dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())
    return torch.relu(pre)
