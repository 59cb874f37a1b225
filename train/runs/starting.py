"""Starting from a trained SAE, ours or another library's: ``init`` of a config.

Rows of the run may be scaled otherwise than the SAE's. If y' = c y with one c for all rows, then with biases
and thresholds multiplied by c the pre-activations and codes become c times what they were, and so does the
reconstruction: the same SAE in other units. Legend: D model width, F latents.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...store.normalization import Normalizer
from ..sae import SAE, THRESHOLD, load_sae
from ..variants.base.variant import Plan, Variant

OF_LATENTS = ("W_enc", "W_dec", "b_enc")
SHARED_TENSORS = (*OF_LATENTS, "b_dec")  # of every kind
IN_UNITS_OF_ROWS = ("b_enc", "b_dec", "b_mag", THRESHOLD)
NORM_TOLERANCE = 1e-4  # decoder rows whose norms differ by less have the same norm
OF_EACH_LATENT = ("relu", "gated")  # rules that look at one latent alone; so is one with a threshold for each


@dataclass(frozen=True, kw_only=True)
class Start:
    """A trained SAE that variants start from, on the CPU. ``identity`` says which, whatever its path is."""

    sae: SAE
    identity: Mapping[str, Any]

    @classmethod
    def load(cls, path: str) -> "Start":
        """Load the SAE.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        try:
            sae = load_sae(path)
        except UsageError as error:
            raise UsageError(f"init: {error}") from None
        cfg = sae.cfg
        identity = {
            "weights_sha256": _hash_of(sae),
            "kind": cfg.kind,
            "hook": cfg.hook,
            "normalization": sae.normalizer.to_dict(),
        }
        return cls(sae=sae, identity=identity)

    def problems(self, variant: Variant, plan: Plan, hook: str, normalizer: Normalizer) -> list[str]:
        """The reasons why ``variant`` cannot start from the SAE, and how to fix them."""
        cfg, found = self.sae.cfg, []
        if cfg.hook != hook:
            found.append(
                f"init is an SAE of hook {cfg.hook}, and the run trains on {hook}: set hook={cfg.hook}, or "
                "give an SAE of this hook (saecache import --hook renames the hook of another library's SAE)"
            )
        for what, theirs, ours in (
            ("width", cfg.d_model, plan.d_model),
            ("num_latents", cfg.num_latents, plan.num_latents),
        ):
            if theirs != ours:
                found.append(f"init has {what} {theirs}, the variant {ours}: they must be the same")
        if self._factor(normalizer) is None:
            found.append(
                f"init was trained on rows normalized by {self.sae.normalizer.kind!r}, which no factor turns "
                f"into the run's {normalizer.kind!r}: set normalization={self.sae.normalizer.kind}"
            )
        return found or self._problems_of_kind(variant)

    def _problems_of_kind(self, variant: Variant) -> list[str]:
        cfg, found = self.sae.cfg, []
        if cfg.inference == "gated" and variant.inference != "gated":
            found.append(
                f"init is a gated SAE, whose gates a {variant.kind} SAE does not have: train a gated one"
            )
        if "b_enc" in variant.frozen_parameters and bool(self.sae.b_enc.any()):
            found.append(f"init has an encoder bias, and {variant.kind} has none: train another kind")
        norms = _norms(self.sae)
        if variant.unit_norm_decoder and not _same(norms) and not self._alone(variant):
            found.append(
                f"init has decoder rows of norms {float(norms.min()):.3g} to {float(norms.max()):.3g}, and "
                f"{variant.kind} keeps them at 1, which would change what it selects: train a kind that "
                "looks at each latent alone (relu with decoder: free, jumprelu, gated)"
            )
        return found

    def _alone(self, variant: Variant) -> bool:
        """Whether both rules look at each latent alone, so that its code may be scaled."""
        threshold = self.sae.threshold
        own = threshold is not None and threshold.dim() == 1
        ours = self.sae.cfg.inference in OF_EACH_LATENT or (self.sae.cfg.inference == THRESHOLD and own)
        return ours and (
            variant.inference in OF_EACH_LATENT or variant.kind in ("jumprelu", "feature_choice")
        )

    def _factor(self, normalizer: Normalizer) -> float | None:
        """c of rows y' = c y; None if there is none."""
        mine = self.sae.normalizer
        if mine == normalizer:
            return 1.0
        if mine.starts_from != normalizer.starts_from or mine.factor is None or normalizer.factor is None:
            return None
        return normalizer.factor / mine.factor

    @torch.no_grad()
    def tensors(self, variant: Variant, plan: Plan, normalizer: Normalizer) -> dict[str, Tensor]:
        """The initial W_enc, W_dec, b_enc and b_dec, and tensors of the variant's own, float32 on the CPU."""
        factor = self._factor(normalizer)
        assert factor is not None, "problems() has said so"
        found = {name: tensor.clone() for name, tensor in self.sae.named_buffers()}
        if factor != 1:
            for name in IN_UNITS_OF_ROWS:
                if name in found:
                    found[name] = (found[name].double() * factor).float()
        norms = _norms(self.sae)
        if variant.unit_norm_decoder and bool(((norms - 1).abs() > NORM_TOLERANCE).any()):
            _normalize_decoder(found, norms)
        own = variant.start_from(found, plan)
        return {name: found[name] for name in SHARED_TENSORS} | dict(own)


def _normalize_decoder(tensors: dict[str, Tensor], norm_F: Tensor) -> None:
    """Give the decoder's rows norm 1; codes and thresholds are multiplied by what the norms were."""
    norm_F = torch.where(norm_F > 0, norm_F, torch.ones_like(norm_F))
    tensors["W_dec"].div_(norm_F[:, None])
    tensors["W_enc"].mul_(norm_F[:, None])
    for name in IN_UNITS_OF_ROWS:
        if name in tensors and name != "b_dec":
            one_for_all = tensors[name].dim() == 0
            tensors[name] = tensors[name] * (norm_F.mean() if one_for_all else norm_F)


def _norms(sae: SAE) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(sae.W_dec, dim=1)
    return norms


def _same(norms: Tensor) -> bool:
    return float(norms.max() - norms.min()) <= NORM_TOLERANCE * float(norms.max())


def _hash_of(sae: SAE) -> str:
    """The sha256 of names, shapes and bytes of all tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        numbers: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(numbers)
    return digest.hexdigest()
