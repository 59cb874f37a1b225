"""Builds our SAE from the tensors of another library; folds what that library does around its matrices.

Legend: D model width, F latents. Tensors are float32: W_enc and W_dec [F, D], b_enc [F], b_dec [D], and
``threshold`` [] or [F], ``r_mag`` and ``b_mag`` [F] where the kind has them.

Ours is always  codes = rule((y - b_dec) @ W_enc.T + b_enc),  ŷ = codes @ W_dec + b_dec,  on rows y that one
of our normalizations makes. Each function below rewrites an SAE without changing its codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...common.printable import is_name_of_file
from ...store.normalization import Normalizer
from ..sae import SAE, THRESHOLD
from ..sae_config import SAEConfig
from ..tensor_file import check_values, sha256_of
from ..variants.base.variant import Variant
from ..variants.jumprelu import PARAMETER, JumpReLU
from .exported import exported_normalizer
from .tensor_files import TensorFile

FOLD_ROWS = 8192  # of W_enc, in float64
MAX_NAME = 200  # characters of a hook, a model or an SAE
MAX_WHOLE_NUMBER = 1 << 62  # of a config; products of two of them can still be printed
IMPORTED = "imported"  # key of cfg.training that tells SAEs of other libraries from ours


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an SAE comes from.

    Attributes:
        hook: in our words.
        facts: what its format says beside it.
        notes: what ``saecache export`` wrote into its config; None if it did not, or could not.
    """

    format: str
    architecture: str
    hook: str
    model: str | None
    facts: Mapping[str, Any]
    notes: Any = None


def subtract_b_dec_before_encoding(parts: dict[str, Tensor]) -> None:
    """Make an SAE that encodes y itself one that encodes y - b_dec: b_enc += W_enc b_dec, in float64."""
    b_dec = parts["b_dec"].double()
    shift_F = torch.cat([rows.double() @ b_dec for rows in torch.split(parts["W_enc"], FOLD_ROWS)])
    parts["b_enc"] = (parts["b_enc"].double() + shift_F).float()
    if "b_mag" in parts:  # its path sees exp(r_mag) times the same product
        parts["b_mag"] = (parts["b_mag"].double() + shift_F * parts["r_mag"].double().exp()).float()


def fold_input_factor(parts: dict[str, Tensor], factor: float) -> None:
    """Make an SAE of rows ``factor`` * y, whose reconstruction is divided again, one of rows y."""
    parts["W_enc"].mul_(factor)
    parts["W_dec"].div_(factor)
    parts["b_dec"].div_(factor)


def fold_decoder_norms(parts: dict[str, Tensor], path: Path) -> None:
    """Multiply pre-activations by the norms of the decoder's rows, which then have norm 1.

    Codes that a library multiplies by the norms before it selects, and divides by them when it decodes.

    Raises:
        UsageError: a row of the decoder is zero.
    """
    norm_F = torch.linalg.vector_norm(parts["W_dec"], dim=1)
    if not bool((norm_F > 0).all()):
        raise UsageError(
            f"{path}: rescale_acts_by_decoder_norm divides by the norms of the decoder's rows, and some are 0"
        )
    parts["W_enc"].mul_(norm_F[:, None])
    parts["b_enc"].mul_(norm_F)
    parts["W_dec"].div_(norm_F[:, None])


def fold_average_norm(normalize: Any, factor: float | None, parts: dict[str, Tensor], path: Path) -> None:
    """Fold the one number that SAELens's ``expected_average_only_in`` multiplies rows by in training.

    Args:
        factor: that number, which its files do not hold; None if the user gave none.

    Raises:
        UsageError: the number is needed and missing, or given and not needed.
    """
    if normalize != "expected_average_only_in":
        if factor is not None:
            raise UsageError(
                f"scaling_factor has no effect on {path}, whose normalization is {normalize!r:.80}: leave it "
                "out"
            )
        return
    if factor is None:
        raise UsageError(
            f"{path} was trained on rows times a number that its files do not hold "
            "(normalize_activations: expected_average_only_in). Load it in Python with "
            "from_saelens(path, scaling_factor=...): sqrt(D) / mean norm of the rows it was trained on, "
            "or 1.0 if that is folded into its weights, as SAELens takes it to be; and .save() it"
        )
    if not (isfinite(factor) and factor > 0):
        raise UsageError(f"scaling_factor must be a positive number, got {factor}")
    fold_input_factor(parts, factor)


def choose_normalizer(normalize: Any, d_model: int, parts: dict[str, Tensor], path: Path) -> Normalizer:
    """The normalization that SAELens calls ``normalize``, after folding what differs into ``parts``.

    Its ``layer_norm`` divides by the standard deviation of D - 1 degrees of freedom (and adds 1e-5 to it,
    which is left out here), ours by that of D: the factor sqrt((D - 1) / D) goes into the weights.

    Raises:
        UsageError: the normalization is not known.
    """
    match normalize:
        case None | "none" | False | "expected_average_only_in":  # the last by fold_average_norm
            return Normalizer("none", d_model)
        case "constant_norm_rescale":
            return Normalizer("rms_norm", d_model)
        case "layer_norm" if d_model > 1:
            fold_input_factor(parts, sqrt((d_model - 1) / d_model))
            return Normalizer("layer_norm", d_model)
    raise UsageError(
        f"{path} normalizes activations by {normalize!r:.80}, which has no counterpart here; none, "
        "expected_average_only_in, constant_norm_rescale and layer_norm have one. Fold it into the weights "
        "with the library that wrote it (SAELens: fold_activation_whitening), save, and load again"
    )


def build_sae(
    variant: Variant, parts: dict[str, Tensor], normalizer: Normalizer, origin: Origin, file: TensorFile
) -> SAE:
    """Build the SAE. A threshold below 0 becomes 0, because the other libraries cut at 0 as well.

    Args:
        normalizer: of the rows that the library's files ask for; an export of ours with normalized rows names
            another one.

    Raises:
        UsageError: a number is not finite, or a name cannot be shown.
    """
    num_latents, d_model = parts["W_enc"].shape
    normalizer = exported_normalizer(origin.notes, file.path.parent, d_model) or normalizer
    if THRESHOLD in parts:
        parts[THRESHOLD] = parts[THRESHOLD].clamp_min(0.0)
        if isinstance(variant, JumpReLU):
            largest = torch.finfo(torch.float32).max
            parts[PARAMETER] = parts[THRESHOLD].clamp_max(
                largest
            )  # which an infinite one is never active above
    for name, tensor in parts.items():
        check_values(f"{file.path}: {name}", tensor, num_latents, unbounded=name == THRESHOLD)
    for what, text in (("hook", origin.hook), ("model", origin.model or "")):
        if not text.isprintable() or len(text) > MAX_NAME:
            raise UsageError(f"{file.path}: the name of its {what} cannot be shown: {text!r:.80}")
    cfg = SAEConfig(
        kind=variant.kind,
        name=_name_of(file.path),
        d_model=d_model,
        num_latents=num_latents,
        k=variant.expected_l0,
        inference=variant.inference,
        hook=origin.hook,
        normalization=normalizer.to_dict(),
        variant=variant,
        cache={"fingerprint": None, "hook": origin.hook, "model": None, "model_name": origin.model},
        training={
            IMPORTED: {
                "format": origin.format,
                "architecture": origin.architecture,
                "weights_sha256": sha256_of(file.path),
                **origin.facts,
            }
        },
    )
    return SAE(cfg, parts)


def imported_from(cfg: SAEConfig) -> str | None:
    """The format that an SAE was loaded from, ``saelens`` for example; None for our own."""
    origin = cfg.training.get(IMPORTED)
    return str(origin.get("format")) if isinstance(origin, Mapping) else None


def _name_of(path: Path) -> str:
    """A name for the SAE of a file: its folder, or the one above if that only says "checkpoints"."""
    folder = path.absolute().parent
    name = folder.parent.name if folder.name == "checkpoints" else folder.name
    name = "".join(c if c.isprintable() and c != "\\" else "_" for c in name)[:MAX_NAME]
    return name if is_name_of_file(name) else "sae"


def whole_number(config: Mapping[str, Any], key: str, path: Path, most: int | None = None) -> int:
    """A positive whole number of a config.

    Raises:
        UsageError: it is missing, something else, or more than ``most``.
    """
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= (MAX_WHOLE_NUMBER if most is None else most):
        limit = "" if most is None else f" of at most {most}"
        raise UsageError(f"{path}: {key} should be a positive whole number{limit}, got {value!r:.80}")
    return value


def text_or_none(config: Mapping[str, Any], key: str) -> str | None:
    """A text of a config; None if it is missing or something else."""
    value = config.get(key)
    return value if isinstance(value, str) and value else None
