"""What an SAE's reconstruction costs the language model: cross-entropy recovered and KL on held-out text.

The definitions are those of SAEBench ("core"), with one difference: only the positions that the cache holds
rows of are replaced. BOS tokens and attention sinks, on which the SAE was never trained, stay as they are,
also in the ablations.

Legend: n sequences, T context, V vocabulary, D model width, P scored positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..common.errors import UsageError
from ..common.progress import progress_bar
from ..distributed.group import ALONE, Group
from ..store import ActivationCache
from .group_losses import Losses, Scorer, metrics_of
from .metrics.bootstrap import draw_weights, sum_by_group
from .results import LanguageModelMetrics
from .sequences import ScoredSequences

Replacement = Callable[[Tensor], Tensor]
RowReplacement = Callable[[Tensor, Tensor], Tensor]

MAX_MISMATCH = 0.1
_CHECKED_SEQUENCES = 4


class SplicedModel(Protocol):
    """A causal language model one of whose activations can be replaced. ``harvest.LanguageModel`` is one.

    It may have ``vocabulary``, the number of token ids that it embeds, which the cache's are compared with.
    It may have ``length_matters = False``: no activation depends on how many positions follow. Then it does
    not run on padding. It may have ``resumed_at(ids, hook)``: :meth:`logits_with` as a function of
    ``replace``, whose calls share what is the same for all.
    """

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
        """As :meth:`SplicedModel.logits`."""
        return self.model.logits(ids)

    def logits_with(self, ids: Tensor, hook: str, replace: Replacement) -> Tensor:
        """As :meth:`SplicedModel.logits_with`, of NAME:HOOK."""
        return self.model.logits_with(ids, hook.removeprefix(f"{self.name}:"), replace)

    def resumed_at(self, ids: Tensor, hook: str) -> Callable[[Replacement], Tensor]:
        """As :func:`resumed_at`, of NAME:HOOK."""
        return resumed_at(self.model, ids, hook.removeprefix(f"{self.name}:"))


def length_matters(model: SplicedModel) -> bool:
    """Whether what follows a position can change its activation: unless the model says that it cannot."""
    inner = model.model if isinstance(model, ModelBeside) else model
    return bool(getattr(inner, "length_matters", True))


def resumed_at(model: SplicedModel, ids: Tensor, hook: str) -> Callable[[Replacement], Tensor]:
    """:meth:`SplicedModel.logits_with` of ``ids`` and ``hook``, sharing what the model can share."""
    shared = getattr(model, "resumed_at", None)
    return partial(model.logits_with, ids, hook) if shared is None else shared(ids, hook)


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

    The clean forward pass is done once, the ablated ones once per hook, the spliced ones once per SAE. Those
    at one hook share the blocks before it. Memory holds the logits of one batch of sequences, about three
    times ``logit_bytes``. The processes of ``group`` share the batches; the first one gets the figures, the
    others none.

    Raises:
        UsageError: the model does not give the activations that the cache holds.
    """
    hooks = list(dict.fromkeys(sae.hook for sae in saes))
    means = {hook: torch.from_numpy(np.asarray(cache.statistics(hook).mean)).float() for hook in hooks}
    starts = _batch_starts(sequences, model, logit_bytes)
    own, cut = group.share(len(starts) - 1), not length_matters(model)
    clean = Losses(sequences.num_groups, own.start)
    zero, mean = ({hook: Losses(sequences.num_groups, own.start) for hook in hooks} for _ in range(2))
    spliced = {sae.name: Losses(sequences.num_groups, own.start) for sae in saes}
    tokens_G = sum_by_group(sequences.group[sequences.scored], None, sequences.num_groups)
    with group.together():
        mismatch = check_model(model, cache, hooks, sequences, split)
        forwards = (starts[own.stop] - starts[own.start]) * (1 + 2 * len(hooks) + len(saes))
        with progress_bar("language model", "forward", forwards, hidden=not show_progress) as progress:
            for number in own:
                batch = sequences.batch(starts[number], starts[number + 1], cut=cut)
                ids = torch.from_numpy(batch.ids)
                mask = torch.from_numpy(batch.spliced)
                scorer = Scorer(model.logits(ids), batch)
                clean.add(*scorer.clean())
                progress.update(len(batch))
                for hook in hooks:
                    logits_with = resumed_at(model, ids, hook)
                    zero[hook].add(*scorer.against(logits_with(_splice(mask, torch.zeros_like))))
                    mean[hook].add(*scorer.against(logits_with(_splice(mask, _constant(means[hook])))))
                    progress.update(2 * len(batch))
                    for sae in saes:
                        if sae.hook == hook:
                            replaced = logits_with(_splice(mask, _replacement(sae, batch)))
                            spliced[sae.name].add(*scorer.against(replaced))
                            progress.update(len(batch))
    for losses in (clean, *zero.values(), *mean.values(), *spliced.values()):
        losses.collect(group)
    if not group.is_first:
        return {}
    weights_RG = draw_weights(sequences.num_groups, seed)
    return {
        sae.name: metrics_of(
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
        UsageError: they differ by far more, or a token id is none of the model's.
    """
    mismatch, cut = {}, not length_matters(model)
    _check_ids(model, cache, sequences)
    for hook in dict.fromkeys(hooks):
        seen: list[Tensor] = []
        stored = []
        for i in range(min(_CHECKED_SEQUENCES, len(sequences))):
            one = sequences.batch(i, i + 1, cut=cut)
            keep = _splice(torch.from_numpy(one.spliced), lambda x_PD: x_PD, seen)
            model.logits_with(torch.from_numpy(one.ids), hook, keep)
            stored.append(cache.rows(hook, one.rows[one.spliced], split=split, normalization="none"))
        mismatch[hook] = _check_activations(torch.cat(seen), torch.cat(stored), hook, cache)
    return mismatch


def _check_ids(model: SplicedModel, cache: ActivationCache, sequences: ScoredSequences) -> None:
    inner = model.model if isinstance(model, ModelBeside) else model
    vocabulary, largest = getattr(inner, "vocabulary", None), int(sequences.ids.max(initial=0))
    if vocabulary is not None and largest >= vocabulary:
        raise UsageError(
            f"{cache.path} has the token id {largest}, and the model embeds {vocabulary} (0 to "
            f"{vocabulary - 1}): the cache is of another model, or damaged ('saecache cache verify "
            f"{cache.path}')"
        )


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
