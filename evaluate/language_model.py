"""What an SAE's reconstruction costs the language model: cross-entropy recovered and KL on held-out text.

The definitions are those of SAEBench ("core"), with one difference: only the positions that the cache holds
rows of are replaced. BOS tokens and attention sinks, on which the SAE was never trained, stay as they are,
also in the ablations.

Legend: n sequences, T context, V vocabulary, D model width, P scored positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..common.errors import UsageError
from ..common.progress import progress_bar
from ..store import ActivationCache
from .results import LanguageModelMetrics
from .sequences import ScoredSequences

Replacement = Callable[[Tensor], Tensor]

MAX_MISMATCH = 0.1
_POSITIONS_AT_ONCE = 1024  # float32 log-probabilities beside those of the clean model


class SplicedModel(Protocol):
    """A causal language model one of whose activations can be replaced. ``harvest.LanguageModel`` is one."""

    def logits(self, ids: Tensor) -> Tensor:
        """``ids`` int64 [n, T] -> logits [n, T, V]."""
        ...

    def logits_with(self, ids: Tensor, hook: str, replace: Replacement) -> Tensor:
        """The same with the activation x [n, T, D] at ``hook`` replaced by ``replace(x)``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """An SAE as the language model sees it: ``reconstruct`` maps raw rows [m, D] float32 to raw rows."""

    name: str
    hook: str
    reconstruct: Replacement


@dataclass
class _Losses:
    """Sums over the scored positions of each sequence."""

    ce: list[np.ndarray] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)

    def add(self, ce_n: Tensor, kl_n: Tensor) -> None:
        self.ce.append(ce_n.cpu().numpy())
        self.kl.append(kl_n.cpu().numpy())


@torch.no_grad()
def measure_language_model(
    model: SplicedModel,
    cache: ActivationCache,
    saes: Sequence[Spliced],
    sequences: ScoredSequences,
    *,
    split: str,
    logit_bytes: int,
    show_progress: bool = True,
) -> dict[str, LanguageModelMetrics]:
    """Measure the CE loss recovered and the KL score of each SAE; by name.

    The clean forward pass is done once, the ablated ones once per hook, the spliced ones once per SAE. Memory
    holds the logits of one batch of sequences, about three times ``logit_bytes``.

    Raises:
        UsageError: the model does not give the activations that the cache holds.
    """
    hooks = list(dict.fromkeys(sae.hook for sae in saes))
    means = {hook: torch.from_numpy(np.asarray(cache.statistics(hook).mean)).float() for hook in hooks}
    clean = _Losses()
    zero, mean = ({hook: _Losses() for hook in hooks} for _ in range(2))
    spliced = {sae.name: _Losses() for sae in saes}
    mismatch: dict[str, float] = {}
    forwards = len(sequences) * (1 + 2 * len(hooks) + len(saes))
    with progress_bar("language model", "forward", forwards, hidden=not show_progress) as progress:
        for batch in _batches(sequences, model, logit_bytes):
            ids = torch.from_numpy(batch.ids)
            mask = torch.from_numpy(batch.spliced)
            scorer = _Scorer(model.logits(ids), ids, torch.from_numpy(batch.scored))
            clean.add(*scorer.clean())
            progress.update(len(batch))
            for hook in hooks:
                seen: list[Tensor] = []
                ablate = _splice(mask, torch.zeros_like, seen)
                zero[hook].add(*scorer.against(model.logits_with(ids, hook, ablate)))
                if hook not in mismatch:
                    stored = cache.rows(hook, batch.rows[batch.spliced], split=split, normalization="none")
                    mismatch[hook] = _check_activations(seen[0], stored, hook, cache)
                replaced = model.logits_with(ids, hook, _splice(mask, _constant(means[hook])))
                mean[hook].add(*scorer.against(replaced))
                progress.update(2 * len(batch))
            for sae in saes:
                replaced = model.logits_with(ids, sae.hook, _splice(mask, sae.reconstruct))
                spliced[sae.name].add(*scorer.against(replaced))
                progress.update(len(batch))
    num_tokens = int(sequences.scored.sum())
    return {
        sae.name: _metrics(
            clean, spliced[sae.name], zero[sae.hook], mean[sae.hook], num_tokens, mismatch[sae.hook]
        )
        for sae in saes
    }


def _batches(sequences: ScoredSequences, model: SplicedModel, logit_bytes: int) -> Iterator[ScoredSequences]:
    """Batches whose float32 logits fit ``logit_bytes``; one short forward pass shows the vocabulary."""
    vocabulary = model.logits(torch.from_numpy(sequences.ids[:1, :1])).shape[-1]
    size = max(1, logit_bytes // (4 * vocabulary * sequences.ids.shape[1]))
    for start in range(0, len(sequences), size):
        yield sequences.batch(start, start + size)


class _Scorer:
    """Cross-entropy and KL of the scored positions of a batch, summed by sequence in float64."""

    def __init__(self, clean_nTV: Tensor, ids_nT: Tensor, scored_nT: Tensor) -> None:
        self._sequence_P, position_P = scored_nT.nonzero(as_tuple=True)
        self._place = (self._sequence_P, position_P)
        self._target_P = ids_nT[self._sequence_P, position_P + 1]
        self._num_sequences = len(ids_nT)
        self._clean_PV = self._log_probabilities(clean_nTV, slice(None))

    def _log_probabilities(self, logits_nTV: Tensor, part: slice) -> Tensor:
        sequence, position = (index[part].to(logits_nTV.device) for index in self._place)
        return logits_nTV[sequence, position].float().log_softmax(-1)

    def clean(self) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the clean model, and its KL to itself, which is 0: two float64 [n]."""
        target = self._target_P.to(self._clean_PV.device)
        ce_P = -self._clean_PV.gather(1, target[:, None])[:, 0].double()
        return self._by_sequence(ce_P), self._by_sequence(torch.zeros_like(ce_P))

    def against(self, logits_nTV: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy with the replacement, and KL(clean ‖ with replacement): two float64 [n]."""
        ce, kl = [], []
        for start in range(0, len(self._target_P), _POSITIONS_AT_ONCE):
            part = slice(start, start + _POSITIONS_AT_ONCE)
            clean = self._clean_PV[part]
            log_p = self._log_probabilities(logits_nTV, part).to(clean.device)
            ce.append(-log_p.gather(1, self._target_P[part].to(clean.device)[:, None])[:, 0])
            kl.append((clean.exp() * (clean - log_p)).sum(1))
        return self._by_sequence(torch.cat(ce).double()), self._by_sequence(torch.cat(kl).double())

    def _by_sequence(self, values_P: Tensor) -> Tensor:
        sums = torch.zeros(self._num_sequences, dtype=torch.float64)
        return sums.index_add_(0, self._sequence_P, values_P.cpu())


def _splice(mask_nT: Tensor, replacement: Replacement, seen: list[Tensor] | None = None) -> Replacement:
    """A function that replaces the masked positions only, in float32, and returns the model's dtype and
    device.

    If ``seen`` is given, the former activations are appended to it: float32 [P, D] on the CPU.
    """

    def replace(x_nTD: Tensor) -> Tensor:
        mask = mask_nT.to(x_nTD.device)
        there_PD = x_nTD[mask].float()
        if seen is not None:
            seen.append(there_PD.cpu())
        replaced = x_nTD.clone()
        replaced[mask] = replacement(there_PD).to(x_nTD)
        return replaced

    return replace


def _constant(value_D: Tensor) -> Replacement:
    return lambda x_PD: value_D.to(x_PD).expand_as(x_PD)


def _check_activations(seen_PD: Tensor, stored_PD: Tensor, hook: str, cache: ActivationCache) -> float:
    """The median relative distance of the model's activations from those stored.

    If model, hook and cache belong together it is the rounding of the stored dtype.

    Raises:
        UsageError: it is far more than rounding.
    """
    if seen_PD.shape != stored_PD.shape:
        raise UsageError(
            f"the model's activation at {hook} has width {seen_PD.shape[-1]}, expected "
            f"{stored_PD.shape[-1]} as in {cache.path}. Pass the model the cache was harvested from."
        )
    distance = (seen_PD - stored_PD).norm(dim=1) / stored_PD.norm(dim=1).clamp_min(1e-30)
    mismatch = float(distance.median())
    if not mismatch <= MAX_MISMATCH:
        raise UsageError(
            f"the model does not give the activations that {cache.path} holds at {hook}: median relative "
            f"distance {mismatch:.3g}, expected at most {MAX_MISMATCH}. Pass the model the cache was "
            "harvested from."
        )
    return mismatch


def _metrics(
    clean: _Losses, sae: _Losses, zero: _Losses, mean: _Losses, num_tokens: int, mismatch: float
) -> LanguageModelMetrics:
    ce = {"clean": clean.ce, "sae": sae.ce, "zero": zero.ce, "mean": mean.ce}
    by_sequence = {name: np.concatenate(parts) for name, parts in ce.items()}
    total = {name: float(values.sum()) for name, values in by_sequence.items()}
    kl_sae, kl_zero = (float(np.concatenate(losses.kl).sum()) for losses in (sae, zero))
    return LanguageModelMetrics(
        num_tokens=num_tokens,
        num_sequences=len(by_sequence["clean"]),
        ce_clean=total["clean"] / num_tokens,
        ce_sae=total["sae"] / num_tokens,
        ce_zero=total["zero"] / num_tokens,
        ce_mean=total["mean"] / num_tokens,
        ce_recovered=recovered(total["zero"], total["sae"], total["clean"]),
        ce_recovered_standard_error=jackknife(by_sequence["zero"], by_sequence["sae"], by_sequence["clean"]),
        ce_recovered_mean_ablation=recovered(total["mean"], total["sae"], total["clean"]),
        kl_sae=kl_sae / num_tokens,
        kl_zero=kl_zero / num_tokens,
        kl_score=recovered(kl_zero, kl_sae, 0.0),
        activation_mismatch=mismatch,
    )


def recovered(ablated: float, sae: float, clean: float) -> float | None:
    """(ablated − sae) / (ablated − clean); None if the ablation does not raise the loss."""
    return (ablated - sae) / (ablated - clean) if ablated > clean else None


def jackknife(ablated_n: np.ndarray, sae_n: np.ndarray, clean_n: np.ndarray) -> float | None:
    """Standard error of the recovered share from sums by sequence, leaving out one sequence at a time."""
    n = len(clean_n)
    without = ablated_n.sum() - ablated_n, sae_n.sum() - sae_n, clean_n.sum() - clean_n
    if n < 2 or not (without[0] > without[2]).all():
        return None
    ratios = (without[0] - without[1]) / (without[0] - without[2])
    return float(np.sqrt((n - 1) / n * np.square(ratios - ratios.mean()).sum()))
