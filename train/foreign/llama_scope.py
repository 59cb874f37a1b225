"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``. JumpReLU with one threshold.

Read in sae_lens 6.54 (pretrained_sae_loaders.py), He et al. 2024 ("Llama Scope"). The SAE is one of rows
times s = sqrt(D) / mean norm of the training rows. The config has the threshold in the units of raw rows, so
it is multiplied by s. s is folded into the weights: rows come as the model has them.
"""

import sys
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import device as Device  # noqa: N812

from ...common.errors import UsageError
from ...store.normalization import Normalizer
from ...store.untrusted_files import read_object
from ..sae import SAE
from ..variants.jumprelu import JumpReLU
from .building import (
    Origin,
    build_sae,
    fold_input_factor,
    subtract_b_dec_before_encoding,
    text_or_none,
    whole_number,
)
from .hook_names import from_transformer_lens
from .tensor_files import Layout, open_tensors, read_parts

CONFIG_FILE, WEIGHTS_FILE = "hyperparams.json", "final.safetensors"
MODEL = "meta-llama/Llama-3.1-8B"
_TENSORS: dict[str, tuple[str, Layout]] = {
    "W_enc": ("encoder.weight", "FD"),
    "W_dec": ("decoder.weight", "DF"),
    "b_enc": ("encoder.bias", "F"),
    "b_dec": ("decoder.bias", "D"),
}


def from_llama_scope(path: str | Path, *, hook: str | None = None, device: str | Device = "cpu") -> SAE:
    """The SAE of a folder of Llama Scope.

    Args:
        hook: the hook in our words, where the config says it otherwise.

    Raises:
        UsageError: no SAE of Llama Scope, damaged files, or something that has no counterpart here.
    """
    folder = Path(path)
    config = read_object(folder / CONFIG_FILE, "copy the SAE again from where it was saved")
    act_fn, site = config.get("act_fn", "jumprelu"), config.get("hook_point_in")
    if act_fn != "jumprelu" or config.get("hook_point_out", site) != site:
        raise UsageError(
            f"{folder} should be an SAE with jumprelu, got {act_fn!r:.80} from {site!r:.80} to "
            f"{config.get('hook_point_out')!r:.80}, which has no counterpart here"
        )
    places = (folder / "checkpoints" / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    weights = next((place for place in places if place.exists()), places[0])
    file = open_tensors(weights)
    d_model, num_latents = (whole_number(config, key, folder / CONFIG_FILE) for key in ("d_model", "d_sae"))
    parts = read_parts(file, _TENSORS, d_model=d_model, num_latents=num_latents)
    factor = _input_factor(config, d_model, folder / CONFIG_FILE)
    threshold = _positive(config, "jump_relu_threshold", folder / CONFIG_FILE)
    parts["threshold"] = torch.full((num_latents,), threshold * factor)
    if not config.get("apply_decoder_bias_to_pre_encoder", False):
        subtract_b_dec_before_encoding(parts)
    fold_input_factor(parts, factor)
    origin = Origin(
        format="llama_scope",
        architecture="jumprelu",
        hook=hook or from_transformer_lens(text_or_none(config, "hook_point_in") or "unknown"),
        model=MODEL,
        facts={"scaling_factor": factor},
    )
    variant = JumpReLU(num_latents=num_latents, threshold_scale="linear")
    return build_sae(variant, parts, Normalizer("none", d_model), origin, file).to(device)


def _input_factor(config: Mapping[str, Any], d_model: int, path: Path) -> float:
    kind = config.get("norm_activation", "dataset-wise")
    if kind == "inference":  # folded already
        return 1.0
    norms = config.get("dataset_average_activation_norm")
    if kind != "dataset-wise" or not isinstance(norms, Mapping):
        raise UsageError(
            f"{path}: norm_activation {kind!r:.80} has no counterpart here, or the "
            "dataset_average_activation_norm of the training rows is missing; expected dataset-wise with it"
        )
    return sqrt(d_model) / _positive(norms, "in", path)


def _positive(config: Mapping[str, Any], key: str, path: Path) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise UsageError(f"{path}: {key} should be a positive number, got {value!r:.80}")
    return float(value)
