"""Gemma Scope: ``params.npz``, or of Gemma Scope 2 ``params.safetensors`` with ``config.json``. JumpReLU.

Read in sae_lens 6.54 (pretrained_sae_loaders.py), Lieberum et al. 2024 ("Gemma Scope"). b_dec is not
subtracted before encoding. The hook follows from the path (``gemma-scope-2b-pt-res/layer_20/width_16k/...``).
"""

import re
from pathlib import Path
from typing import Any

from torch import device as Device  # noqa: N812

from ...common.errors import UsageError
from ...store.normalization import Normalizer
from ...store.untrusted_files import read_object
from ..sae import SAE
from ..variants.jumprelu import JumpReLU
from .building import Origin, build_sae, subtract_b_dec_before_encoding, text_or_none
from .hook_names import from_module
from .tensor_files import Layout, open_tensors, read_parts

WEIGHTS_FILES, CONFIG_FILE = ("params.npz", "params.safetensors"), "config.json"
_TENSORS: dict[str, tuple[str, Layout]] = {
    "W_enc": ("w_enc", "DF"),
    "W_dec": ("w_dec", "FD"),
    "b_enc": ("b_enc", "F"),
    "b_dec": ("b_dec", "D"),
    "threshold": ("threshold", "F"),
}
_UPPER = {"W_enc": "W_enc", "W_dec": "W_dec"}  # some releases write the matrices' names so
_LAYER = re.compile(r"layer_([0-9]{1,6})")
_SITES = {"res": "resid_post", "resid_post": "resid_post", "mlp": "mlp_out", "mlp_out": "mlp_out"}
_RELEASE = re.compile(r"gemma-scope(-2)?-([0-9a-z-]*?)-?(res|mlp|att)?")


def from_gemma_scope(path: str | Path, *, hook: str | None = None, device: str | Device = "cpu") -> SAE:
    """The SAE of a folder of Gemma Scope.

    Args:
        hook: the hook in our words; by default what the config or the folder's path says.

    Raises:
        UsageError: no SAE of Gemma Scope, damaged files, a transcoder, or a hook that the path does not say.
    """
    folder = Path(path)
    weights = next((folder / name for name in WEIGHTS_FILES if (folder / name).exists()), None)
    if weights is None:
        raise UsageError(f"no SAE of Gemma Scope in {folder}: expected {' or '.join(WEIGHTS_FILES)} there")
    config = _read_config(folder / CONFIG_FILE)
    file = open_tensors(weights)
    if "affine_skip_connection" in file.tensors or "transcoder" in str(folder.absolute()):
        raise UsageError(f"{folder} is a transcoder: its output is another activation than its input")
    wanted = {
        ours: (_UPPER.get(ours, theirs) if theirs not in file.tensors else theirs, layout)
        for ours, (theirs, layout) in _TENSORS.items()
    }
    shape = file.shape(wanted["W_enc"][0])
    if len(shape) != 2:
        raise UsageError(f"{weights}: the encoder should be a matrix, got {list(shape)}")
    d_model, num_latents = shape
    parts = read_parts(file, wanted, d_model=d_model, num_latents=num_latents)
    subtract_b_dec_before_encoding(parts)
    origin = Origin(
        format="gemma_scope",
        architecture="jumprelu",
        hook=hook or _hook(folder, config),
        model=text_or_none(config, "model_name") or _model(folder),
        facts={},
    )
    variant = JumpReLU(num_latents=num_latents, threshold_scale="linear")
    return build_sae(variant, parts, Normalizer("none", d_model), origin, file).to(device)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_object(path, "remove it: the hook can be given by hand")
    except FileNotFoundError:
        return {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise UsageError(f"{path}: architecture should be 'jump_relu', got {config['architecture']!r:.80}")
    before, after = (config.get(f"hf_hook_point_{side}") for side in ("in", "out"))
    if after is not None and after != before:
        raise UsageError(f"{path.parent} is a transcoder: its output is another activation than its input")
    return config


def _hook(folder: Path, config: dict[str, Any]) -> str:
    if point := text_or_none(config, "hf_hook_point_in"):
        return from_module(point)
    parts = folder.absolute().parts
    layer = next((match[1] for part in reversed(parts) if (match := _LAYER.match(part))), None)
    words = {word for part in parts for word in re.split(r"[-]+", part)} | set(parts)
    if {"att", "attn_out", "embedding"} & words:
        return "unknown" if layer is None else f"blocks.{layer}.attn.hook_z"
    site = next((name for word, name in _SITES.items() if word in words), None)
    if layer is None or site is None:
        raise UsageError(
            f"the path {folder} does not say which hook the SAE is of (expected .../gemma-scope-...-res/"
            "layer_20/...): load it in Python with from_gemma_scope(path, hook='resid_post.20'), and save it"
        )
    return f"{site}.{int(layer)}"


def _model(folder: Path) -> str | None:
    """``gemma-scope-2b-pt-res`` -> ``gemma-2-2b``; None if no folder above is called so."""
    for part in folder.absolute().parts:
        match = _RELEASE.fullmatch(part.rpartition("--")[2])
        if match and match[2]:
            return f"gemma-{3 if match[1] else 2}-{match[2].removesuffix('-pt')}"
    return None
