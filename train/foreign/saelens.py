"""SAELens folders: ``cfg.json`` and ``sae_weights.safetensors``.

Read in sae_lens 6.54 (saes/*.py, loading/pretrained_sae_loaders.py). Files from before version 6 differ in
the names of their config only. SAELens computes in the type that the config names; here it is float32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import device as Device  # noqa: N812

from ...common.errors import UsageError
from ...store.untrusted_files import read_object
from ..sae import SAE
from ..variants.base.variant import Variant
from ..variants.gated import Gated
from ..variants.jumprelu import JumpReLU
from ..variants.relu import ReLU
from ..variants.topk import TopK
from .building import (
    Origin,
    build_sae,
    choose_normalizer,
    fold_average_norm,
    fold_decoder_norms,
    subtract_b_dec_before_encoding,
    text_or_none,
    whole_number,
)
from .hook_names import from_transformer_lens
from .tensor_files import Layout, TensorFile, open_tensors, read_parts

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
_MATRICES: dict[str, tuple[str, Layout]] = {
    "W_enc": ("W_enc", "DF"),
    "W_dec": ("W_dec", "FD"),
    "b_dec": ("b_dec", "D"),
}
_BIAS: dict[str, tuple[str, Layout]] = {"b_enc": ("b_enc", "F")}
_TENSORS: dict[str, dict[str, tuple[str, Layout]]] = {
    "standard": _MATRICES | _BIAS,
    "topk": _MATRICES | _BIAS,
    "jumprelu": _MATRICES | _BIAS | {"threshold": ("threshold", "F")},
    "gated": _MATRICES | {"b_enc": ("b_gate", "F"), "b_mag": ("b_mag", "F"), "r_mag": ("r_mag", "F")},
}
_FORMER_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}  # before version 6
SCALING = "scaling_factor"


def from_saelens(
    path: str | Path,
    *,
    scaling_factor: float | None = None,
    hook: str | None = None,
    device: str | Device = "cpu",
) -> SAE:
    """The SAE of a SAELens folder, with the features and reconstructions that SAELens computes.

    Args:
        scaling_factor: what rows are multiplied by first, for ``expected_average_only_in`` only.
        hook: the hook in our words, where the config does not say it or says it otherwise.

    Raises:
        UsageError: no SAE of SAELens, damaged files, or something that has no counterpart here.
    """
    folder = Path(path)
    config = _read_config(folder / CONFIG_FILE)
    file = open_tensors(folder / WEIGHTS_FILE)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _TENSORS:
        raise UsageError(
            f"{folder} is an SAE of architecture {architecture!r:.80}, which has no counterpart here; "
            f"{', '.join(_TENSORS)} have one. An SAE in training is saved by save_inference_model()"
        )
    if config.get("reshape_activations") not in (None, "none", "hook_z"):
        raise UsageError(f"{folder} reshapes activations by {config['reshape_activations']!r:.80}")
    d_model, num_latents = (whole_number(config, key, folder / CONFIG_FILE) for key in ("d_in", "d_sae"))
    wanted = _TENSORS[architecture]
    parts = read_parts(file, wanted, d_model=d_model, num_latents=num_latents, others=_checked_scaling(file))
    variant = _variant(architecture, config, folder / CONFIG_FILE, num_latents)
    normalize = config.get("normalize_activations")
    fold_average_norm(normalize, scaling_factor, parts, folder)
    if architecture == "topk" and config.get("rescale_acts_by_decoder_norm"):
        fold_decoder_norms(parts, folder)
    if not config.get("apply_b_dec_to_input", True):
        subtract_b_dec_before_encoding(parts)
    normalizer = choose_normalizer(normalize, d_model, parts, folder)
    metadata = config["metadata"]
    origin = Origin(
        format="saelens",
        architecture=architecture,
        hook=hook or from_transformer_lens(text_or_none(metadata, "hook_name") or "unknown"),
        model=text_or_none(metadata, "model_name"),
        facts={"normalize_activations": normalize, "scaling_factor": scaling_factor},
        notes=metadata.get("saecache"),
    )
    return build_sae(variant, parts, normalizer, origin, file).to(device)


def _read_config(path: Path) -> dict[str, Any]:
    """The config as version 6 has it; ``metadata`` is a mapping."""
    found = read_object(path, "copy the SAE again from where it was saved")
    metadata = found.get("metadata")
    if isinstance(metadata, Mapping) and metadata.get("sae_lens_version"):
        return found
    config = {_FORMER_NAMES.get(key, key): value for key, value in found.items()}
    config.setdefault("architecture", "standard")
    arguments = config.get("activation_fn_kwargs")
    if config.get("activation_fn") == "topk" and isinstance(arguments, Mapping):
        config |= {"architecture": "topk", "k": arguments.get("k")}
    elif config.get("activation_fn") not in (None, "relu", "topk"):
        raise UsageError(f"{path}: activation_fn {config['activation_fn']!r:.80} has no counterpart here")
    if config.get("normalize_activations") is True:
        config["normalize_activations"] = "expected_average_only_in"
    return config | {"metadata": {**config, **(metadata if isinstance(metadata, Mapping) else {})}}


def _checked_scaling(file: TensorFile) -> list[str]:
    """The name of the tensor that scales features after training, if there is one and it changes nothing.

    Raises:
        UsageError: it does.
    """
    if SCALING not in file.tensors:
        return []
    if file.tensors[SCALING].dtype.is_floating_point and bool((file.read(SCALING) == 1).all()):
        return [SCALING]
    raise UsageError(
        f"{file.path}: scaling_factor is not 1 everywhere. Fold it into the decoder with the library that "
        "wrote it, save, and load again"
    )


def _variant(architecture: str, config: Mapping[str, Any], path: Path, num_latents: int) -> Variant:
    match architecture:
        case "topk":
            return TopK(num_latents=num_latents, k=whole_number(config, "k", path, num_latents))
        case "jumprelu":
            return JumpReLU(num_latents=num_latents, threshold_scale="linear")
        case "gated":
            return Gated(num_latents=num_latents)
    return ReLU(num_latents=num_latents, decoder="free")
