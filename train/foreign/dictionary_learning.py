"""dictionary_learning folders: ``config.json`` and ``ae.pt``, or ``ae.safetensors`` with the same tensors.

Read in dictionary-learning 0.1.0 (utils.py, dictionary.py, trainers/*.py). ``ae.pt`` is read without
unpickling it (:mod:`.torch_file`).
"""

import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import device as Device  # noqa: N812

from ...common.errors import UsageError
from ...common.hook_names import parse_hook
from ...store.normalization import Normalizer
from ...store.untrusted_files import read_object
from ..sae import SAE
from ..variants.base.variant import Variant
from ..variants.batch_topk import BatchTopK
from ..variants.gated import Gated
from ..variants.jumprelu import JumpReLU
from ..variants.matryoshka import MatryoshkaBatchTopK
from ..variants.relu import ReLU
from ..variants.topk import TopK
from .building import (
    MAX_NAME,
    Origin,
    build_sae,
    subtract_b_dec_before_encoding,
    text_or_none,
    whole_number,
)
from .hook_names import from_module
from .tensor_files import Layout, TensorFile, open_tensors, read_parts

CONFIG_FILE, WEIGHTS_FILE, SAFE_WEIGHTS_FILE = "config.json", "ae.pt", "ae.safetensors"
MAX_GROUPS = 1000
_Tensors = dict[str, tuple[str, Layout]]
_LINEAR: _Tensors = {"W_enc": ("encoder.weight", "FD"), "W_dec": ("decoder.weight", "DF")}
_NESTED: _Tensors = {
    "W_enc": ("W_enc", "DF"),
    "W_dec": ("W_dec", "FD"),
    "b_enc": ("b_enc", "F"),
    "b_dec": ("b_dec", "D"),
}
_TOP: _Tensors = _LINEAR | {"b_enc": ("encoder.bias", "F"), "b_dec": ("b_dec", "D")}
_TENSORS: dict[str, _Tensors] = {
    "AutoEncoder": _LINEAR | {"b_enc": ("encoder.bias", "F"), "b_dec": ("bias", "D")},
    "AutoEncoderNew": _LINEAR | {"b_enc": ("encoder.bias", "F"), "b_dec": ("decoder.bias", "D")},
    "AutoEncoderTopK": _TOP,
    "BatchTopKSAE": _TOP | {"threshold": ("threshold", "1")},
    "MatryoshkaBatchTopKSAE": _NESTED | {"threshold": ("threshold", "1")},
    "JumpReluAutoEncoder": _NESTED | {"threshold": ("threshold", "F")},
    "GatedAutoEncoder": _LINEAR
    | {
        "b_enc": ("gate_bias", "F"),
        "b_mag": ("mag_bias", "F"),
        "r_mag": ("r_mag", "F"),
        "b_dec": ("decoder_bias", "D"),
    },
}
_OTHERS = {  # tensors beside them: k is compared, the threshold of TopK is not used by its class
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k",),
    "MatryoshkaBatchTopKSAE": ("k", "group_sizes"),
}
_WITHOUT_B_DEC = ("AutoEncoderNew", "JumpReluAutoEncoder")  # encode x itself
_SUBMODULE = re.compile(r"(resid|mlp|attn|attention)_(pre|post|out)(?:_layer_?([0-9]{1,6}))?")


def from_dictionary_learning(
    path: str | Path, *, hook: str | None = None, device: str | Device = "cpu"
) -> SAE:
    """The SAE of a dictionary_learning folder.

    Args:
        hook: the hook in our words, where the config does not say it or says it otherwise.

    Raises:
        UsageError: no SAE of dictionary_learning, damaged files, or a class that has no counterpart here.
    """
    folder = Path(path)
    config = read_object(folder / CONFIG_FILE, "copy the SAE again from where it was saved")
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        raise UsageError(f"{folder / CONFIG_FILE} should hold a mapping called trainer")
    dict_class = trainer.get("dict_class")
    if not isinstance(dict_class, str) or dict_class not in _TENSORS:
        raise UsageError(
            f"{folder} is an SAE of class {dict_class!r:.80}, which has no counterpart here; "
            f"{', '.join(_TENSORS)} have one"
        )
    safe = (folder / SAFE_WEIGHTS_FILE).exists()
    file = open_tensors(folder / (SAFE_WEIGHTS_FILE if safe else WEIGHTS_FILE))
    wanted = _TENSORS[dict_class]
    num_latents, d_model = _sizes(file, trainer, *wanted["W_enc"])
    others = [name for name in _OTHERS.get(dict_class, ()) if name in file.tensors]
    parts = read_parts(file, wanted, d_model=d_model, num_latents=num_latents, others=others)
    if dict_class in _WITHOUT_B_DEC:
        subtract_b_dec_before_encoding(parts)
    variant = _variant(dict_class, file, trainer, folder / CONFIG_FILE, parts)
    origin = Origin(
        format="dictionary_learning",
        architecture=dict_class,
        hook=hook or _hook(trainer, config.get("buffer")),
        model=text_or_none(trainer, "lm_name"),
        facts={},
        notes=config.get("saecache"),
    )
    return build_sae(variant, parts, Normalizer("none", d_model), origin, file).to(device)


def _sizes(file: TensorFile, trainer: Mapping[str, Any], encoder: str, layout: Layout) -> tuple[int, int]:
    """F and D of the encoder, which the config must not contradict."""
    shape = file.shape(encoder)
    if len(shape) != 2:
        raise UsageError(f"{file.path}: tensor {encoder} should be a matrix, got {file.tensors[encoder]}")
    num_latents, d_model = shape if layout == "FD" else shape[::-1]
    for key, got in (("dict_size", num_latents), ("activation_dim", d_model)):
        if trainer.get(key, got) != got:
            raise UsageError(f"{file.path} has {key} {got}, and its config says {trainer[key]!r:.80}")
    return num_latents, d_model


def _variant(
    dict_class: str, file: TensorFile, trainer: Mapping[str, Any], path: Path, parts: Mapping[str, Tensor]
) -> Variant:
    num_latents = len(parts["b_enc"])
    match dict_class:
        case "AutoEncoder" | "AutoEncoderNew":
            return ReLU(num_latents=num_latents, decoder="free")
        case "GatedAutoEncoder":
            return Gated(num_latents=num_latents)
        case "JumpReluAutoEncoder":
            return JumpReLU(num_latents=num_latents, threshold_scale="linear")
    k = whole_number(trainer, "k", path, num_latents)
    if "k" in file.tensors and file.number("k") != k:
        raise UsageError(f"{file.path} has k={file.number('k'):g}, and its config says {k}")
    if dict_class == "AutoEncoderTopK":
        return TopK(num_latents=num_latents, k=k)
    if dict_class == "BatchTopKSAE":
        return BatchTopK(num_latents=num_latents, k=k)
    return MatryoshkaBatchTopK(num_latents=num_latents, k=k, prefixes=_prefixes(file, num_latents))


def _prefixes(file: TensorFile, num_latents: int) -> tuple[float, ...]:
    """The ends of the groups as fractions of the dictionary."""
    shape = file.shape("group_sizes")
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_GROUPS or file.tensors["group_sizes"].dtype != torch.int64:
        raise UsageError(
            f"{file.path}: group_sizes should be int64 [groups], got {file.tensors['group_sizes']}"
        )
    sizes = file.read("group_sizes").tolist()
    if min(sizes) < 1 or sum(sizes) != num_latents:
        raise UsageError(
            f"{file.path}: group_sizes should sum to the {num_latents} latents, got {sizes!s:.80}"
        )
    return tuple(end / num_latents for end in accumulate(sizes))


def _hook(trainer: Mapping[str, Any], buffer: Any) -> str:
    """The hook of the config's ``submodule_name`` and ``layer``; a block's output if they say no more."""
    name = (text_or_none(trainer, "submodule_name") or "")[:MAX_NAME]
    layer = trainer.get("layer")
    layer = layer if type(layer) is int and 0 <= layer < 10**6 else None
    if parse_hook(name) is not None:
        return name
    if match := _SUBMODULE.fullmatch(name):
        half = {"attention": "attn"}.get(match[1], match[1])
        block = layer if match[3] is None else int(match[3])
        return name if block is None else f"{half}_{match[2]}.{block}"
    if name:
        return from_module(name)
    side = "pre" if isinstance(buffer, Mapping) and buffer.get("io") == "in" else "post"
    return "unknown" if layer is None else f"resid_{side}.{layer}"
