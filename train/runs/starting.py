"""Starting from a trained SAE, ours or another library's: ``init`` of a config.

Rows of the run may be scaled otherwise than the SAE's. If y' = c y with one c for all rows, then with biases
and thresholds multiplied by c the pre-activations and codes become c times what they were, and so does the
reconstruction: the same SAE in other units. A transcoder's target may be scaled by another number, t. Then
codes become t times what they were: biases and thresholds are multiplied by t, b_in by c, and W_enc and
W_skip by t / c. Legend: D model width, F latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...store.normalization import Normalizer
from ..latent_shards import WITHOUT_LATENTS
from ..loading import load_sae
from ..sae import SAE, THRESHOLD
from ..sae_config import HookRows, SAETarget
from ..sae_hooks import encoded_hooks, name_of
from ..variants.base.variant import Plan, Variant

OF_EVERY_KIND = {"W_enc", "W_dec", "b_enc", *WITHOUT_LATENTS}
IN_UNITS_OF_ROWS = ("b_enc", "b_dec", "b_mag", THRESHOLD)  # those that are reconstructed
NORM_TOLERANCE = 1e-4  # decoder rows whose norms differ by less have the same norm


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
            "weights_sha256": sae.weights_sha256(),
            "kind": cfg.kind,
            "hook": cfg.hook,
            "normalization": cfg.normalization if cfg.hooks is not None else sae.normalizer.to_dict(),
        }
        if cfg.hooks is not None or cfg.predicted:
            identity |= cfg.model_dump(mode="json", include={"hooks", "target", "targets"})
        return cls(sae=sae, identity=identity)

    def problems(
        self, variant: Variant, plan: Plan, encoded: Sequence[HookRows], targets: Sequence[SAETarget]
    ) -> list[str]:
        """The reasons why ``variant`` cannot start from the SAE, and how to fix them.

        Args:
            encoded: the hooks whose rows the run's SAE encodes.
            targets: what it predicts, if it is a transcoder.
        """
        cfg = self.sae.cfg
        found = self._problems_of_hooks(encoded, targets)
        for what, theirs, ours in (
            ("width", _widths(encoded_hooks(cfg)), _widths(encoded)),
            ("target of width", _widths(cfg.predicted), _widths(targets)),
            ("num_latents", cfg.num_latents, plan.num_latents),
        ):
            if theirs != ours:
                found.append(f"init has {what} {theirs}, the variant {ours}: they must be the same")
        return found or self._problems_of_rows(encoded, targets) or self._problems_of_kind(variant)

    def _problems_of_hooks(self, encoded: Sequence[HookRows], targets: Sequence[SAETarget]) -> list[str]:
        cfg = self.sae.cfg
        mine = encoded_hooks(cfg)
        if _describe(mine, cfg.predicted) == _describe(encoded, targets):
            return []
        if len(mine) == len(encoded) == 1 and not cfg.predicted and not targets:
            return [
                f"init is an SAE of hook {cfg.hook}, and the run trains on {encoded[0].hook}: set "
                f"hook={cfg.hook}, or give an SAE of this hook (saecache import --hook renames the hook of "
                "another library's SAE)"
            ]
        return [
            f"init is {_describe(mine, cfg.predicted)}, and the run trains {_describe(encoded, targets)}: "
            f"set {_settings(mine, cfg.predicted)}, or give another init"
        ]

    def _problems_of_rows(self, encoded: Sequence[HookRows], targets: Sequence[SAETarget]) -> list[str]:
        pairs = self._pairs(encoded, targets)
        found = [
            f"init was trained on rows normalized by {mine.normalizer.kind!r}, which no factor turns into "
            f"the run's {ours.normalizer.kind!r}: set {setting}={mine.normalizer.kind}"
            for setting, mine, ours in pairs
            if _factor(mine.normalizer, ours.normalizer) is None
        ]
        for side in () if found else (pairs[: len(encoded)], pairs[len(encoded) :]):
            if len(factors := {f"{factor:.9g}" for factor in _factors(side)}) > 1:
                found.append(
                    f"init is a {self.sae.cfg.shape}, and the rows of its hooks are scaled by different "
                    f"factors here ({', '.join(sorted(factors))}): train on a cache with the same "
                    "statistics, or set normalization to a kind that scales every row alike in both runs, "
                    "and train it anew"
                )
        return found

    def _pairs(
        self, encoded: Sequence[HookRows], targets: Sequence[SAETarget]
    ) -> list[tuple[str, HookRows, HookRows]]:
        """The rows of the SAE and those of the run, hook by hook, with the setting of their normalization."""
        cfg = self.sae.cfg
        sides = (
            ("normalization", encoded_hooks(cfg), encoded),
            ("target.normalization", cfg.predicted, targets),
        )
        return [(name, *pair) for name, mine, ours in sides for pair in zip(mine, ours, strict=True)]

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
        threshold = self.sae.threshold  # one for all latents would be another one for each that is scaled
        ours = self.sae.cfg.variant.selects_alone if threshold is None else threshold.dim() == 1
        return ours and variant.selects_alone

    @torch.no_grad()
    def tensors(
        self, variant: Variant, plan: Plan, encoded: Sequence[HookRows], targets: Sequence[SAETarget]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Where ``variant`` starts, float32 on the CPU.

        Returns:
            The initial W_enc, W_dec, b_enc, b_dec and, of a transcoder, b_in and W_skip, with the rows of
            this process's latents; and tensors of the variant's own, with those of all latents.
        """
        pairs = self._pairs(encoded, targets)
        factors = _factors(pairs)
        assert len(factors) == len(pairs), "problems() has said so"
        found = {name: tensor.clone() for name, tensor in self.sae.named_buffers()}
        _scale(found, factors[0], factors[-1] if targets else factors[0])
        norms = _norms(self.sae)
        if variant.unit_norm_decoder and bool(((norms - 1).abs() > NORM_TOLERANCE).any()):
            _normalize_decoder(found, norms)
        own = variant.start_from(found, plan)
        whole = {name: tensor for name, tensor in found.items() if name in OF_EVERY_KIND}
        shards = plan.shards
        parts = {n: t if n in WITHOUT_LATENTS else shards.part(t).clone() for n, t in whole.items()}
        return parts, dict(own)


def _factor(mine: Normalizer, ours: Normalizer) -> float | None:
    """c of rows y' = c y; None if there is none."""
    if mine == ours:
        return 1.0
    if mine.starts_from != ours.starts_from or mine.factor is None or ours.factor is None:
        return None
    return ours.factor / mine.factor


def _factors(pairs: Sequence[tuple[str, HookRows, HookRows]]) -> list[float]:
    """c of rows y' = c y, for each of the pairs that have one."""
    found = (_factor(mine.normalizer, ours.normalizer) for _, mine, ours in pairs)
    return [factor for factor in found if factor is not None]


def _scale(tensors: dict[str, Tensor], encoded: float, decoded: float) -> None:
    """Change the units of the rows that are encoded and of those that are reconstructed, by these factors."""
    factors = dict.fromkeys(IN_UNITS_OF_ROWS, decoded)
    factors |= {"b_in": encoded, "W_enc": decoded / encoded, "W_skip": decoded / encoded}
    for name, factor in factors.items():
        if name in tensors and factor != 1:
            tensors[name] = (tensors[name].double() * factor).float()


def _widths(hooks: Sequence[HookRows]) -> str:
    return "+".join(str(part.d_model) for part in hooks)


def _describe(encoded: Sequence[HookRows], targets: Sequence[SAETarget]) -> str:
    """What an SAE reads and reconstructs, in words."""
    if targets:
        skip = " with a skip connection" if targets[0].skip else ""
        kind = "a cross-layer transcoder" if len(targets) > 1 else "a transcoder"
        return f"{kind} from {name_of(encoded)} to {name_of(targets)}{skip}"
    return f"{'a crosscoder' if len(encoded) > 1 else 'an SAE'} of {name_of(encoded)}"


def _settings(encoded: Sequence[HookRows], targets: Sequence[SAETarget]) -> str:
    """The settings of a run that trains such an SAE."""
    hooks = f"[{', '.join(part.hook for part in encoded)}]"
    if len(targets) > 1:
        return f"hook={hooks}, target.hook to the pattern of {name_of(targets)}, and target.cross_layer=true"
    if targets:
        target = targets[0]
        return f"hook={encoded[0].hook}, target.hook={target.hook} and target.skip={str(target.skip).lower()}"
    if len(encoded) > 1:
        return f"hook={hooks} and crosscoder=true"
    return f"hook={encoded[0].hook}, target=null and crosscoder=false"


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
