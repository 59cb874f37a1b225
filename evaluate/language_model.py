"""What an SAE's reconstruction costs the language model: cross-entropy recovered and KL on held-out text.

The definitions are those of SAEBench ("core"), with one difference: only the positions that the cache holds
rows of are replaced. BOS tokens and attention sinks, on which the SAE was never trained, stay as they are,
also in the ablations.

Legend: n sequences, T context, V vocabulary, D model width, P scored positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..common.errors import UsageError
from ..common.progress import progress_bar
from ..distributed.group import ALONE, Group
from ..store import ActivationCache
from .metrics.bootstrap import Floats, draw_weights, intervals_of, ratio, sum_by_group
from .results import LanguageModelMetrics
from .sequences import ScoredSequences
from .tree_sum import TreeSum

Replacement = Callable[[Tensor], Tensor]
RowReplacement = Callable[[Tensor, Tensor], Tensor]

MAX_MISMATCH = 0.1
_CHECKED_SEQUENCES = 4
_POSITIONS_AT_ONCE = 1024  # float32 log-probabilities beside those of the clean model


class SplicedModel(Protocol):
    """A causal language model one of whose activations can be replaced. ``harvest.LanguageModel`` is one."""

    def logits(self, ids: Tensor) -> Tensor:
        """``ids`` int64 [n, T] -> logits [n, T, V]."""
        ...

    def logits_with(self, ids: Tensor, hook: str, replace: Replacement) -> Tensor:
        """The same with the activation x [n, T, D] at ``hook`` replaced by ``replace(x)``."""
        ...


@dataclass(frozen=True)
class ModelBeside:
    """The model of a cache that is read beside another one, where its hooks are called NAME:HOOK."""

    model: SplicedModel
    name: str

    def logits(self, ids: Tensor) -> Tensor:
        return self.model.logits(ids)

    def logits_with(self, ids: Tensor, hook: str, replace: Replacement) -> Tensor:
        return self.model.logits_with(ids, hook.removeprefix(f"{self.name}:"), replace)


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """An SAE as the language model sees it: ``reconstruct`` maps raw rows [m, D] float32 to raw rows.

    ``by_row`` is used instead where a reconstruction depends on more than the row itself: it is given the
    rows [m, D], and their numbers in the measured split, int64 [m].
    """

    name: str
    hook: str
    reconstruct: Replacement
    by_row: RowReplacement | None = None


class _Losses:
    """Sums over the scored positions of each group of documents, float64 [G]: cross-entropy, KL to the clean
    model, and positions with the clean model's most likely token. They come batch by batch.
    """

    def __init__(self, num_groups: int, first_batch: int) -> None:
        self._sums = TreeSum(first_batch)
        self.ce, self.kl, self.agreeing = np.zeros((3, num_groups))  # once they are collected

    def add(self, ce_G: Floats, kl_G: Floats, agreeing_G: Floats) -> None:
        self._sums.add(torch.from_numpy(np.stack([ce_G, kl_G, agreeing_G])))

    def collect(self, group: Group) -> None:
        """Bring the sums of all processes of ``group`` to the first one."""
        self._sums.collect(group, 0)
        if (total := self._sums.total()) is not None:
            self.ce, self.kl, self.agreeing = total.numpy()


@torch.no_grad()
def measure_language_model(
    model: SplicedModel,
    cache: ActivationCache,
    saes: Sequence[Spliced],
    sequences: ScoredSequences,
    *,
    split: str,
    logit_bytes: int,
    seed: int = 0,
    group: Group = ALONE,
    show_progress: bool = True,
) -> dict[str, LanguageModelMetrics]:
    """Measure the CE loss recovered, the KL and the top-1 agreement of each SAE; by name.

    The clean forward pass is done once, the ablated ones once per hook, the spliced ones once per SAE. Memory
    holds the logits of one batch of sequences, about three times ``logit_bytes``. The processes of ``group``
    share the batches; the first one gets the figures, the others none.

    Raises:
        UsageError: the model does not give the activations that the cache holds.
    """
    hooks = list(dict.fromkeys(sae.hook for sae in saes))
    means = {hook: torch.from_numpy(np.asarray(cache.statistics(hook).mean)).float() for hook in hooks}
    starts = _batch_starts(sequences, model, logit_bytes)
    own = group.share(len(starts) - 1)
    clean = _Losses(sequences.num_groups, own.start)
    zero, mean = ({hook: _Losses(sequences.num_groups, own.start) for hook in hooks} for _ in range(2))
    spliced = {sae.name: _Losses(sequences.num_groups, own.start) for sae in saes}
    tokens_G = sum_by_group(sequences.group[sequences.scored], None, sequences.num_groups)
    with group.together():
        mismatch = check_model(model, cache, hooks, sequences, split)
        forwards = (starts[own.stop] - starts[own.start]) * (1 + 2 * len(hooks) + len(saes))
        with progress_bar("language model", "forward", forwards, hidden=not show_progress) as progress:
            for number in own:
                batch = sequences.batch(starts[number], starts[number + 1])
                ids = torch.from_numpy(batch.ids)
                mask = torch.from_numpy(batch.spliced)
                scorer = _Scorer(model.logits(ids), batch)
                clean.add(*scorer.clean())
                progress.update(len(batch))
                for hook in hooks:
                    replaced = model.logits_with(ids, hook, _splice(mask, torch.zeros_like))
                    zero[hook].add(*scorer.against(replaced))
                    replaced = model.logits_with(ids, hook, _splice(mask, _constant(means[hook])))
                    mean[hook].add(*scorer.against(replaced))
                    progress.update(2 * len(batch))
                for sae in saes:
                    replaced = model.logits_with(ids, sae.hook, _splice(mask, _replacement(sae, batch)))
                    spliced[sae.name].add(*scorer.against(replaced))
                    progress.update(len(batch))
    for losses in (clean, *zero.values(), *mean.values(), *spliced.values()):
        losses.collect(group)
    if not group.is_first:
        return {}
    weights_RG = draw_weights(sequences.num_groups, seed)
    return {
        sae.name: _metrics(
            {"clean": clean, "sae": spliced[sae.name], "zero": zero[sae.hook], "mean": mean[sae.hook]},
            tokens_G,
            weights_RG,
            num_sequences=len(sequences),
            mismatch=mismatch[sae.hook],
        )
        for sae in saes
    }


@torch.no_grad()
def check_model(
    model: SplicedModel, cache: ActivationCache, hooks: Iterable[str], sequences: ScoredSequences, split: str
) -> dict[str, float]:
    """Make sure, on a few sequences, that ``model`` gives the activations that ``cache`` holds at ``hooks``.

    Returns:
        The median relative distance of the activations at each hook; it is the rounding of the stored dtype.

    Raises:
        UsageError: they differ by far more.
    """
    mismatch = {}
    for hook in dict.fromkeys(hooks):
        seen: list[Tensor] = []
        stored = []
        for i in range(min(_CHECKED_SEQUENCES, len(sequences))):
            one = sequences.batch(i, i + 1)
            keep = _splice(torch.from_numpy(one.spliced), lambda x_PD: x_PD, seen)
            model.logits_with(torch.from_numpy(one.ids), hook, keep)
            stored.append(cache.rows(hook, one.rows[one.spliced], split=split, normalization="none"))
        mismatch[hook] = _check_activations(torch.cat(seen), torch.cat(stored), hook, cache)
    return mismatch


def _replacement(sae: Spliced, batch: ScoredSequences) -> Replacement:
    by_row = sae.by_row
    if by_row is None:
        return sae.reconstruct
    row_P = torch.from_numpy(batch.rows[batch.spliced])
    return lambda x_PD: by_row(x_PD, row_P)


def _batch_starts(sequences: ScoredSequences, model: SplicedModel, logit_bytes: int) -> list[int]:
    """The first sequence of each batch, and the end of the last: float32 logits of one fit ``logit_bytes``.

    One short forward pass shows the vocabulary.
    """
    vocabulary = model.logits(torch.from_numpy(sequences.ids[:1, :1])).shape[-1]
    size = max(1, logit_bytes // (4 * vocabulary * sequences.ids.shape[1]))
    return [*range(0, len(sequences), size), len(sequences)]


class _Scorer:
    """Cross-entropy, KL and agreement at the scored positions of a batch, summed by group of documents in
    float64.
    """

    def __init__(self, clean_nTV: Tensor, batch: ScoredSequences) -> None:
        sequence_P, position_P = np.nonzero(batch.scored)
        self._place = torch.from_numpy(sequence_P), torch.from_numpy(position_P)
        self._target_P = torch.from_numpy(batch.ids[sequence_P, position_P + 1])
        self._group_P, self._num_groups = batch.group[sequence_P, position_P], batch.num_groups
        self._clean_PV = self._log_probabilities(clean_nTV, slice(None))
        self._first_P = self._clean_PV.argmax(1)

    def _log_probabilities(self, logits_nTV: Tensor, part: slice) -> Tensor:
        sequence, position = (index[part].to(logits_nTV.device) for index in self._place)
        return logits_nTV[sequence, position].float().log_softmax(-1)

    def clean(self) -> tuple[Floats, Floats, Floats]:
        """The clean model's cross-entropy, KL to itself (0) and agreement with itself: [G] each."""
        target = self._target_P.to(self._clean_PV.device)
        ce_P = -self._clean_PV.gather(1, target[:, None])[:, 0]
        return (
            self._by_group(ce_P),
            self._by_group(torch.zeros_like(ce_P)),
            self._by_group(torch.ones_like(ce_P)),
        )

    def against(self, logits_nTV: Tensor) -> tuple[Floats, Floats, Floats]:
        """With the replacement: cross-entropy, KL(clean ‖ with replacement), and agreement: [G] each."""
        ce, kl, agreeing = [], [], []
        for start in range(0, len(self._target_P), _POSITIONS_AT_ONCE):
            part = slice(start, start + _POSITIONS_AT_ONCE)
            clean = self._clean_PV[part]
            log_p = self._log_probabilities(logits_nTV, part).to(clean.device)
            ce.append(-log_p.gather(1, self._target_P[part].to(clean.device)[:, None])[:, 0])
            kl.append((clean.exp() * (clean - log_p)).sum(1))
            agreeing.append((log_p.argmax(1) == self._first_P[part]).float())
        sums = [self._by_group(torch.cat(values)) for values in (ce, kl, agreeing)]
        return sums[0], sums[1], sums[2]

    def _by_group(self, values_P: Tensor) -> Floats:
        return sum_by_group(self._group_P, values_P.cpu().double().numpy(), self._num_groups)


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
    losses: dict[str, _Losses],
    tokens_G: Floats,
    weights_RG: Floats | None,
    *,
    num_sequences: int,
    mismatch: float,
) -> LanguageModelMetrics:
    """The figures of one SAE; ``losses`` are those of ``clean``, ``sae``, ``zero`` and ``mean``."""
    figures = {
        name: None if np.isnan(value[0]) else float(value[0])
        for name, value in _figures(losses, tokens_G, np.ones((1, len(tokens_G)))).items()
    }
    error = jackknife(losses["zero"].ce, losses["sae"].ce, losses["clean"].ce)
    return LanguageModelMetrics.model_validate(
        figures
        | {
            "num_tokens": int(tokens_G.sum()),
            "num_sequences": num_sequences,
            "ce_recovered_standard_error": error,
            "activation_mismatch": mismatch,
            "intervals": {} if weights_RG is None else intervals_of(_figures(losses, tokens_G, weights_RG)),
        }
    )


def _figures(losses: dict[str, _Losses], tokens_G: Floats, weights_RG: Floats) -> dict[str, Floats]:
    """The figures of each weighting of the groups, float64 [R] each; NaN where a score has no meaning."""
    tokens_R = weights_RG @ tokens_G
    ce = {name: weights_RG @ loss.ce / tokens_R for name, loss in losses.items()}
    kl = {name: weights_RG @ loss.kl / tokens_R for name, loss in losses.items()}
    top1 = {name: weights_RG @ loss.agreeing / tokens_R for name, loss in losses.items()}
    replaced = ("sae", "zero", "mean")
    return {
        **{f"ce_{name}": ce[name] for name in ("clean", *replaced)},
        **{f"kl_{name}": kl[name] for name in replaced},
        **{f"top1_{name}": top1[name] for name in replaced},
        "ce_recovered": recovered(ce["zero"], ce["sae"], ce["clean"]),
        "ce_recovered_mean_ablation": recovered(ce["mean"], ce["sae"], ce["clean"]),
        "kl_score": recovered(kl["zero"], kl["sae"], np.zeros_like(tokens_R)),
        "kl_score_mean_ablation": recovered(kl["mean"], kl["sae"], np.zeros_like(tokens_R)),
    }


def recovered(ablated_R: Floats, sae_R: Floats, clean_R: Floats) -> Floats:
    """(ablated − sae) / (ablated − clean); NaN where the ablation does not raise the loss."""
    return ratio(ablated_R - sae_R, ablated_R - clean_R)


def jackknife(ablated_n: np.ndarray, sae_n: np.ndarray, clean_n: np.ndarray) -> float | None:
    """Standard error of the recovered share from sums by group, leaving out one group at a time."""
    n = len(clean_n)
    without = ablated_n.sum() - ablated_n, sae_n.sum() - sae_n, clean_n.sum() - clean_n
    if n < 2 or not (without[0] > without[2]).all():
        return None
    ratios = (without[0] - without[1]) / (without[0] - without[2])
    return float(np.sqrt((n - 1) / n * np.square(ratios - ratios.mean()).sum()))
