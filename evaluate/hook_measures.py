"""What an SAE of several hooks does at each: its fidelity there, and the share of each latent's decoder.

The share of latent i at hook h is |W_dec_i at h| / sum over hooks of |W_dec_i at them|. Latents near 1 are
exclusive to a hook, those near 1 / H shared (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer
Features and Model Diffing", sections on feature norms and model diffing).

Legend: B rows of a block, O width of what is reconstructed, F latents, H hooks.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..distributed.group import Group
from ..train import SAE
from ..train.sae_hooks import decoded_hooks, split_by_hook
from .metrics import ReconstructionStream
from .results import Histogram, HookResult, LanguageModelMetrics

_BINS = 20
TINY = 1e-30


class HookStreams:
    """Fidelity at each of several hooks that an SAE reconstructs, from rows that stream by; else nothing."""

    def __init__(
        self, sae: SAE, num_groups: int, *, first_block: int = 0, block_0: Sequence[Tensor] = ()
    ) -> None:
        """``first_block`` and ``block_0`` are as for :class:`.ReconstructionStream`; the latter are its
        normalized and its raw rows [B, O].
        """
        self._sae = sae
        first = [split_by_hook(sae.cfg, rows) for rows in block_0] or [{}, {}]
        hooks = [part.hook for part in decoded_hooks(sae.cfg)]
        self._streams = {
            hook: [
                ReconstructionStream(num_groups, first_block=first_block, block_0_BD=rows.get(hook))
                for rows in first
            ]
            for hook in (hooks if len(hooks) > 1 else ())
        }

    def update(
        self, target_BO: Tensor, decoded_BO: Tensor, raw_BO: Tensor, raw_decoded_BO: Tensor, group_B: Tensor
    ) -> None:
        """Add a block: normalized rows with their reconstruction, and both raw."""
        if not self._streams:
            return
        blocks = [
            split_by_hook(self._sae.cfg, rows) for rows in (target_BO, decoded_BO, raw_BO, raw_decoded_BO)
        ]
        for hook, (normalized, raw) in self._streams.items():
            target, decoded, raw_target, raw_decoded = (block[hook] for block in blocks)
            normalized.update(target, decoded, group_B)
            raw.update(raw_target, raw_decoded, group_B)

    def collect(self, group: Group, owner: int) -> None:
        """Bring the sums of all processes of ``group``, which share the rows, to process ``owner``."""
        for streams in self._streams.values():
            for stream in streams:
                stream.collect(group, owner)

    def results(self, seed: int, density_F: Tensor) -> list[HookResult]:
        """A result per hook; shares are of the latents that fire on some of the rows (all, if none does)."""
        if not self._streams:
            return []
        shares = decoder_shares(self._sae)
        alive_F = (
            density_F > 0 if bool((density_F > 0).any()) else torch.ones_like(density_F, dtype=torch.bool)
        )
        return [
            HookResult(
                hook=part.hook,
                d_model=part.d_model,
                normalized=self._streams[part.hook][0].result(seed),
                raw=self._streams[part.hook][1].result(seed),
                mean_decoder_share=float(shares[part.hook][alive_F].mean()),
                decoder_shares=_histogram(shares[part.hook][alive_F]),
            )
            for part in decoded_hooks(self._sae.cfg)
        ]


def decoder_shares(sae: SAE) -> dict[str, Tensor]:
    """The share of each latent's decoder norm at every hook, float32 [F] by hook; 0 where all norms are 0."""
    norms = {
        hook: torch.linalg.vector_norm(rows, dim=1).cpu()
        for hook, rows in split_by_hook(sae.cfg, sae.W_dec).items()
    }
    total = torch.stack(list(norms.values())).sum(0).clamp_min(TINY)
    return {hook: norm / total for hook, norm in norms.items()}


def with_costs(results: list[HookResult], costs: Mapping[str, LanguageModelMetrics]) -> list[HookResult]:
    """The results of one SAE's hooks with what each costs the language model, by hook."""
    return [one.model_copy(update={"language_model": costs.get(one.hook)}) for one in results]


def _histogram(share_F: Tensor) -> Histogram:
    counts, edges = np.histogram(share_F.numpy(), _BINS, (0, 1))
    return Histogram(edges=[float(edge) for edge in edges], counts=[int(count) for count in counts])
