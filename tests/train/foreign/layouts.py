"""Folders as other libraries write them, of random weights, and their forward passes by plain formulas.

The formulas are those of the libraries' documentation; ``test_peers.py`` compares with the libraries.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, K = 12, 40, 5
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class Layout:
    """A folder below ``root``: its path there, JSON files, tensors, and what it computes."""

    folder: str
    configs: dict[str, dict[str, Any]]
    weights: str
    tensors: dict[str, Tensor]
    forward: Forward
    hook: str = "resid_post.3"
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        folder = root / self.folder
        (folder / self.weights).parent.mkdir(parents=True, exist_ok=True)
        for name, config in self.configs.items():
            (folder / name).write_text(json.dumps(config))
        write_weights(folder / self.weights, self.tensors)
        return folder


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    if path.suffix == ".pt":
        torch.save(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: t.numpy() for name, t in tensors.items()})
    else:
        save_file(tensors, path)


def rows(num_rows: int = 64) -> Tensor:
    random = torch.Generator().manual_seed(5)
    return 2 * torch.randn(num_rows, D, generator=random) + torch.randn(D, generator=random)


def parts() -> dict[str, Tensor]:
    """W_enc and W_dec [F, D], biases, thresholds of which some are below 0."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=random)

    return {
        "W_enc": draw(F, D),
        "W_dec": draw(F, D),
        "b_enc": draw(F),
        "b_dec": draw(D),
        "threshold": draw(F),
        "r_mag": draw(F),
        "b_mag": draw(F),
    }


def relu(pre: Tensor) -> Tensor:
    return pre.relu()


def topk(pre: Tensor) -> Tensor:
    least = pre.topk(K, dim=1).values[:, -1:]
    return torch.where(pre >= least, pre, 0).relu()


def jump(threshold: Tensor | float) -> Callable[[Tensor], Tensor]:
    return lambda pre: torch.where(pre > threshold, pre, 0).relu()


def plain(
    p: dict[str, Tensor], rule: Callable[[Tensor], Tensor], *, subtract: bool = True, scale: float = 1.0
) -> Forward:
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * scale
        f = rule((y - p["b_dec"] * subtract) @ p["W_enc"].T + p["b_enc"])
        return f, (f @ p["W_dec"] + p["b_dec"]) / scale

    return forward


def gated(p: dict[str, Tensor]) -> Forward:
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        a = (x - p["b_dec"]) @ p["W_enc"].T
        f = (a + p["b_enc"] > 0) * (a * p["r_mag"].exp() + p["b_mag"]).relu()
        return f, f @ p["W_dec"] + p["b_dec"]

    return forward


def standardized(forward: Forward) -> Forward:
    """As SAELens's layer_norm, without its 1e-5."""

    def around(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        f, y = forward((x - mean) / std)
        return f, y * std + mean

    return around


def of_constant_norm(forward: Forward) -> Forward:
    def around(x: Tensor) -> tuple[Tensor, Tensor]:
        factor = math.sqrt(D) / x.norm(dim=1, keepdim=True)
        f, y = forward(x * factor)
        return f, y / factor

    return around


def _saelens(
    architecture: str, tensors: dict[str, Tensor], forward: Forward, settings: Any = None, **config: Any
) -> Layout:
    cfg = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "toy",
            "hook_name": "blocks.3.hook_resid_post",
        },
        **config,
    }
    return Layout(
        "sae", {"cfg.json": cfg}, "sae_weights.safetensors", tensors, forward, settings=settings or {}
    )


def _dictionary(
    dict_class: str, tensors: dict[str, Tensor], forward: Forward, weights: str = "ae.pt"
) -> Layout:
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": F,
        "k": K,
        "layer": 3,
        "lm_name": "toy",
    }
    config = {"trainer": trainer | {"submodule_name": "resid_post_layer_3"}, "buffer": {"ctx_len": 8}}
    return Layout("trainer_0", {"config.json": config}, weights, tensors, forward)


def layouts() -> dict[str, Layout]:
    """Every format and kind, by name."""
    p = parts()
    lens = {"W_enc": p["W_enc"].T, "W_dec": p["W_dec"], "b_enc": p["b_enc"], "b_dec": p["b_dec"]}
    gates = {"W_enc": p["W_enc"].T, "W_dec": p["W_dec"], "b_dec": p["b_dec"], "b_gate": p["b_enc"]}
    gates |= {"b_mag": p["b_mag"], "r_mag": p["r_mag"]}
    linear = {"encoder.weight": p["W_enc"], "decoder.weight": p["W_dec"].T, "encoder.bias": p["b_enc"]}
    top = linear | {"b_dec": p["b_dec"], "k": torch.tensor(K, dtype=torch.int)}
    nested = {"W_enc": p["W_enc"].T, "W_dec": p["W_dec"], "b_enc": p["b_enc"], "b_dec": p["b_dec"]}
    norms = p["W_dec"].norm(dim=1)
    jumping = plain(p, jump(p["threshold"]), subtract=False)
    scope = {"w_enc": p["W_enc"].T, "w_dec": p["W_dec"], "b_enc": p["b_enc"], "b_dec": p["b_dec"]}
    scope |= {"threshold": p["threshold"]}
    factor = math.sqrt(D) / 7.0
    hyperparams = {
        "d_model": D,
        "d_sae": F,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.2,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 7.0, "out": 7.0},
        "hook_point_in": "blocks.3.hook_resid_post",
        "hook_point_out": "blocks.3.hook_resid_post",
    }

    def rescaled(x: Tensor) -> tuple[Tensor, Tensor]:
        f = topk(((x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]) * norms)
        return f, f / norms @ p["W_dec"] + p["b_dec"]

    threshold = {"threshold": p["threshold"]}
    return {
        "saelens_standard": _saelens("standard", lens, plain(p, relu)),
        "saelens_topk": _saelens("topk", lens, plain(p, topk), k=K),
        "saelens_rescaled": _saelens("topk", lens, rescaled, k=K, rescale_acts_by_decoder_norm=True),
        "saelens_jumprelu": _saelens("jumprelu", lens | threshold, jumping, apply_b_dec_to_input=False),
        "saelens_gated": _saelens("gated", gates, gated(p)),
        "saelens_layer_norm": _saelens(
            "standard", lens, standardized(plain(p, relu)), normalize_activations="layer_norm"
        ),
        "saelens_constant_norm": _saelens(
            "topk", lens, of_constant_norm(plain(p, topk)), k=K, normalize_activations="constant_norm_rescale"
        ),
        "saelens_average_norm": _saelens(
            "standard",
            lens,
            plain(p, relu, scale=0.4),
            settings={"scaling_factor": 0.4},
            normalize_activations="expected_average_only_in",
        ),
        "dictionary_relu": _dictionary("AutoEncoder", linear | {"bias": p["b_dec"]}, plain(p, relu)),
        "dictionary_new": _dictionary(
            "AutoEncoderNew", linear | {"decoder.bias": p["b_dec"]}, plain(p, relu, subtract=False)
        ),
        "dictionary_topk": _dictionary(
            "AutoEncoderTopK", top | {"threshold": torch.tensor(-1.0)}, plain(p, topk)
        ),
        "dictionary_batch": _dictionary(
            "BatchTopKSAE", top | {"threshold": torch.tensor(0.3)}, plain(p, jump(0.3))
        ),
        "dictionary_never": _dictionary(
            "BatchTopKSAE", top | {"threshold": torch.tensor(-1.0)}, plain(p, relu)
        ),
        "dictionary_nested": _dictionary(
            "MatryoshkaBatchTopKSAE",
            nested
            | {"k": top["k"], "threshold": torch.tensor(0.3), "group_sizes": torch.tensor([7, 13, 20])},
            plain(p, jump(0.3)),
        ),
        "dictionary_jumprelu": _dictionary("JumpReluAutoEncoder", nested | threshold, jumping),
        "dictionary_gated": _dictionary(
            "GatedAutoEncoder",
            {"encoder.weight": p["W_enc"], "decoder.weight": p["W_dec"].T, "decoder_bias": p["b_dec"]}
            | {"gate_bias": p["b_enc"], "mag_bias": p["b_mag"], "r_mag": p["r_mag"]},
            gated(p),
        ),
        "dictionary_safetensors": _dictionary(
            "AutoEncoder", linear | {"bias": p["b_dec"]}, plain(p, relu), weights="ae.safetensors"
        ),
        "sparsify": Layout(
            "run/layers.3",
            {"cfg.json": {"activation": "topk", "expansion_factor": 32, "num_latents": F, "k": K, "d_in": D}},
            "sae.safetensors",
            {
                "encoder.weight": p["W_enc"],
                "encoder.bias": p["b_enc"],
                "W_dec": p["W_dec"],
                "b_dec": p["b_dec"],
            },
            plain(p, topk),
        ),
        "gemma_scope": Layout(
            "gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_7", {}, "params.npz", scope, jumping
        ),
        "gemma_scope_2": Layout(
            "sae",
            {"config.json": {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.3.output"}},
            "params.safetensors",
            scope,
            jumping,
        ),
        "llama_scope": Layout(
            "Llama3_1-8B-Base-L3R-8x",
            {"hyperparams.json": hyperparams},
            "checkpoints/final.safetensors",
            linear | {"decoder.bias": p["b_dec"]},
            plain(p, jump(0.2 * factor), subtract=False, scale=factor),
        ),
    }
