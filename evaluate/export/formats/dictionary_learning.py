"""dictionary_learning: ``ae.pt`` (plain tensors) and ``config.json``, read with ``utils.load_dictionary``.

Written after dictionary-learning 0.1.0 (utils.py, dictionary.py, trainers/*.py). Its classes differ in this:

- ``AutoEncoder`` scales decoder columns to norm 1 when it is loaded. The export has done that already, and
  its features are multiplied by the norms.
- ``BatchTopKSAE`` and ``MatryoshkaBatchTopKSAE`` have one threshold. An SAE with a threshold for each latent
  becomes a ``JumpReluAutoEncoder``, which does not subtract b_dec before encoding: b_enc then includes it.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ....store.durable import fsync_file, write_bytes
from ....train.foreign.dictionary_learning import CONFIG_FILE, WEIGHTS_FILE
from ....train.foreign.tensor_files import open_tensors
from ....train.variants.matryoshka import MatryoshkaBatchTopK
from ..format import Exportable, Format, Forward, Written
from ..metadata import make_notes
from ..rules import Form, integer_k

TINY = 1e-30
_TRAINERS = {  # dict_class -> trainer_class; only readers of the config look at it
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}


class DictionaryLearning(Format):
    """The folder that dictionary_learning writes for a trained dictionary."""

    forms: ClassVar[frozenset[Form]] = frozenset({"relu", "topk", "threshold", "gated"})

    def write(self, what: Exportable, folder: Path) -> Written:
        dict_class = _class_of(what)
        tensors = {name: t.detach().clone().contiguous() for name, t in _tensors(what, dict_class).items()}
        path = folder / WEIGHTS_FILE
        try:
            torch.save(tensors, path)
        except RuntimeError as error:  # torch's error for a full disk
            raise OSError(f"cannot write {path}: {error}") from error
        fsync_file(path)
        config = _config(what, dict_class)
        write_bytes(folder / CONFIG_FILE, (json.dumps(config, indent=4) + "\n").encode("utf-8"))
        return Written(architecture=dict_class, times_decoder_norm=dict_class == "AutoEncoder")

    def read(self, folder: Path) -> Forward:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))["trainer"]
        file = open_tensors(folder / WEIGHTS_FILE)
        return _FORWARD[config["dict_class"]]({name: file.read(name) for name in file.tensors})

    def loading(self, folder: Path) -> str:
        return (
            "from dictionary_learning.utils import load_dictionary; "
            f"sae, config = load_dictionary({str(folder)!r}, device='cpu')"
        )


FORMAT = DictionaryLearning()


def _class_of(what: Exportable) -> str:
    sae, form = what.sae, what.rule.form
    if form == "threshold":
        assert sae.threshold is not None, "choose_rule has checked that"
        if sae.threshold.dim() or integer_k(sae) is None:
            return "JumpReluAutoEncoder"
        nested = isinstance(sae.cfg.variant, MatryoshkaBatchTopK)
        return "MatryoshkaBatchTopKSAE" if nested else "BatchTopKSAE"
    return {"relu": "AutoEncoder", "topk": "AutoEncoderTopK", "gated": "GatedAutoEncoder"}[form]


def _tensors(what: Exportable, dict_class: str) -> dict[str, Tensor]:
    sae, scaled = what.sae, what.space.scaled
    b_enc, b_dec = scaled(sae.b_enc), scaled(sae.b_dec)
    linear = {"encoder.weight": sae.W_enc, "decoder.weight": sae.W_dec.T}
    if dict_class == "AutoEncoder":
        norm = sae.W_dec.norm(dim=1)
        direction = sae.W_dec / norm[:, None].clamp_min(TINY)
        direction[norm == 0, 0] = 1.0  # its feature is 0; a norm of 0 would give NaN when it is loaded
        return {
            "bias": b_dec,
            "encoder.weight": sae.W_enc * norm[:, None],
            "encoder.bias": b_enc * norm,
            "decoder.weight": direction.T,
        }
    if dict_class == "GatedAutoEncoder":
        named = dict(sae.named_buffers())
        biases = {"gate_bias": b_enc, "mag_bias": scaled(named["b_mag"]), "decoder_bias": b_dec}
        return {**linear, **biases, "r_mag": named["r_mag"]}
    matrices = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_dec": b_dec}
    if dict_class == "JumpReluAutoEncoder":
        assert sae.threshold is not None, "_class_of has looked"
        inside = (sae.b_enc.double() - sae.W_enc.double() @ sae.b_dec.double()) * what.space.factor
        threshold = scaled(sae.threshold).expand(sae.cfg.num_latents)
        return {**matrices, "b_enc": inside.float(), "threshold": threshold}
    rule = {
        "k": torch.tensor(integer_k(sae), dtype=torch.int),
        "threshold": torch.tensor(-1.0) if sae.threshold is None else scaled(sae.threshold),
    }
    if dict_class == "MatryoshkaBatchTopKSAE":
        return {**matrices, **rule, "b_enc": b_enc, "group_sizes": torch.tensor(_group_sizes(what))}
    return {**linear, **rule, "encoder.bias": b_enc, "b_dec": b_dec}


def _group_sizes(what: Exportable) -> list[int]:
    variant = what.sae.cfg.variant
    assert isinstance(variant, MatryoshkaBatchTopK), "the class says so"
    return [b - a for a, b in pairwise([0, *variant.sizes(what.sae.cfg.num_latents)])]


def _config(what: Exportable, dict_class: str) -> dict[str, Any]:
    sae, provenance = what.sae, what.provenance
    k = {} if integer_k(sae) is None else {"k": integer_k(sae)}
    return {
        "trainer": {
            "trainer_class": _TRAINERS[dict_class],
            "dict_class": dict_class,
            "activation_dim": sae.cfg.d_model,
            "dict_size": sae.cfg.num_latents,
            **k,
            "layer": provenance.layer,
            "lm_name": provenance.model,
            "submodule_name": provenance.hook,
            "seed": sae.cfg.training.get("seed"),
            "steps": sae.cfg.training.get("step"),
        },
        "buffer": {
            "d_submodule": sae.cfg.d_model,
            "io": "in" if provenance.hook.startswith("resid_pre.") else "out",
            "ctx_len": provenance.context,
            "dataset": provenance.dataset,
            "prepend_bos": provenance.prepend_bos,
        },
        "saecache": make_notes(sae, feature_factor=what.space.factor, rows=what.space.rows),
    }


def _auto_encoder(t: dict[str, Tensor]) -> Forward:
    norm, b_enc, W_enc, W_dec = t["decoder.weight"].norm(dim=0), *_linear(t)
    if not torch.allclose(norm, torch.ones_like(norm)):
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
    return lambda v: _decoded(torch.relu((v - t["bias"]) @ W_enc + b_enc), W_dec, t["bias"])


def _linear(t: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """b_enc [F], W_enc [D, F], W_dec [F, D]."""
    return t["encoder.bias"], t["encoder.weight"].T, t["decoder.weight"].T


def _top_k(t: dict[str, Tensor]) -> Forward:
    b_enc, W_enc, W_dec = _linear(t)

    def forward(v: Tensor) -> tuple[Tensor, Tensor]:
        post = torch.relu((v - t["b_dec"]) @ W_enc + b_enc)
        top = post.topk(int(t["k"]), dim=-1, sorted=False)
        return _decoded(torch.zeros_like(post).scatter_(-1, top.indices, top.values), W_dec, t["b_dec"])

    return forward


def _batch_top_k(t: dict[str, Tensor]) -> Forward:
    return _one_threshold(t, *_linear(t))


def _matryoshka(t: dict[str, Tensor]) -> Forward:
    assert int(t["group_sizes"].sum()) == t["b_enc"].numel(), "the class refuses others"
    return _one_threshold(t, t["b_enc"], t["W_enc"], t["W_dec"])


def _one_threshold(t: dict[str, Tensor], b_enc: Tensor, W_enc: Tensor, W_dec: Tensor) -> Forward:
    def forward(v: Tensor) -> tuple[Tensor, Tensor]:
        post = torch.relu((v - t["b_dec"]) @ W_enc + b_enc)
        return _decoded(post * (post > t["threshold"]), W_dec, t["b_dec"])

    return forward


def _jump_relu(t: dict[str, Tensor]) -> Forward:
    def forward(v: Tensor) -> tuple[Tensor, Tensor]:
        pre = v @ t["W_enc"] + t["b_enc"]
        return _decoded(torch.relu(pre * (pre > t["threshold"])), t["W_dec"], t["b_dec"])

    return forward


def _gated(t: dict[str, Tensor]) -> Forward:
    def forward(v: Tensor) -> tuple[Tensor, Tensor]:
        a = (v - t["decoder_bias"]) @ t["encoder.weight"].T
        magnitude = torch.relu(t["r_mag"].exp() * a + t["mag_bias"])
        return _decoded((a + t["gate_bias"] > 0) * magnitude, t["decoder.weight"].T, t["decoder_bias"])

    return forward


def _decoded(features: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, Tensor]:
    return features, features @ W_dec + b_dec


_FORWARD = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
}
