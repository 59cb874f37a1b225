"""SAEs as the language model sees them: spliced in at the hooks that they reconstruct.

Legend: P rows, m rows of a batch of sequences, D width of what is encoded, O width of what is reconstructed.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.errors import UsageError
from ..common.memory import check_memory
from ..distributed.group import ALONE, Group
from ..store import ActivationCache
from ..train import SAE
from ..train.sae_config import SAEConfig
from ..train.sae_hooks import decoded_hooks, split_by_hook
from .config import EvaluateConfig
from .language_model import ModelBeside, Spliced, SplicedModel, measure_language_model
from .measure import read_rows
from .results import LanguageModelMetrics
from .rows import MeasuredRows, batch_rows_of
from .sequences import ScoredSequences
from .targets import Target


def measure_costs(
    models: Sequence[tuple[SplicedModel, list[str]]],
    targets: Sequence[Target],
    configs: Mapping[str, SAEConfig],
    cache: ActivationCache,
    rows: MeasuredRows,
    sequences: ScoredSequences | None,
    config: EvaluateConfig,
    device: torch.device,
    group: Group,
    *,
    show_progress: bool,
) -> dict[str, LanguageModelMetrics]:
    """What the SAEs cost the language model, by name, or by :func:`name_at` for a crosscoder at one hook.

    ``models`` are what :func:`find_models` finds. The processes of ``group`` share the sequences; all get the
    figures, none without a model. A pass
    over the sequences measures a part of the SAEs, so that one process does not hold more of them the more
    there are of both.
    """
    if sequences is None:
        return {}
    every = {hook for _, own in models for hook in own}
    fitting = [
        target
        for target in targets
        if any(part.hook in every for part in decoded_hooks(configs[target.name]))
    ]
    found: dict[str, LanguageModelMetrics] = {}
    for some in parts_for(fitting, group):
        spliced = [
            one
            for target in some
            for one in splice_sae(
                target.name, target.load(device), cache, rows.split, sequences, config, group
            )
        ]
        for model, own in models:
            if at_own := [one for one in spliced if one.hook in own]:
                found |= measure_language_model(
                    model,
                    cache,
                    at_own,
                    sequences,
                    split=rows.split,
                    logit_bytes=config.logit_bytes,
                    seed=config.seed,
                    group=group,
                    show_progress=show_progress,
                )
    figures = group.on_first(lambda: {name: one.model_dump(mode="json") for name, one in found.items()})
    return {name: LanguageModelMetrics.model_validate(one) for name, one in figures.items()}


def parts_for(targets: Sequence[Target], group: Group) -> list[Sequence[Target]]:
    """Parts of the SAEs for processes that share the work on each part and hold it whole: as many SAEs as
    each process would have if they were spread. With one process, one part.
    """
    size = max(1, -(-len(targets) // group.size))
    return [targets[start : start + size] for start in range(0, len(targets), size)]


def splice_sae(
    name: str,
    sae: SAE,
    cache: ActivationCache,
    split: str,
    sequences: ScoredSequences,
    config: EvaluateConfig,
    group: Group,
) -> list[Spliced]:
    """The SAE as the language model sees it: at the hook that it reconstructs; one of several at one at a
    time. Where it encodes other hooks than the one that is replaced, their rows come from the cache.
    """

    def reconstruct(raw_PD: torch.Tensor) -> torch.Tensor:
        reconstruction: torch.Tensor = sae(raw_PD.to(sae.W_dec.device), input="raw")
        return reconstruction

    by_row = None
    if config.rule == "batch":
        by_row = reconstruct_in_batches(sae, cache, split, sequences.rows[sequences.spliced], config, group)
    parts = decoded_hooks(sae.cfg)
    if by_row is None and (sae.cfg.predicted or len(parts) > 1):
        by_row = reconstruct_cached(sae, cache, split)
    if by_row is None or len(parts) == 1:
        return [Spliced(name=name, hook=parts[0].hook, reconstruct=reconstruct, by_row=by_row)]
    whole = by_row

    def at(hook: str) -> Spliced:
        def replace(rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return split_by_hook(sae.cfg, whole(rows, numbers))[hook]

        return Spliced(name=name_at(name, hook), hook=hook, reconstruct=reconstruct, by_row=replace)

    return [at(part.hook) for part in parts]


def name_at(name: str, hook: str) -> str:
    """The name of a crosscoder spliced in at one of its hooks."""
    return f"{name} at {hook}"


def find_models(
    cache: ActivationCache, model: SplicedModel | None, beside: Mapping[str, SplicedModel]
) -> list[tuple[SplicedModel, list[str]]]:
    """The models that are run, each with the hooks that are its own, as ``cache`` names them.

    Args:
        model: that of ``cache`` itself.
        beside: those of caches beside it, by the caches' names.

    Raises:
        UsageError: a model of a cache that is not there.
    """
    if unknown := [name for name in beside if name not in cache.beside]:
        raise UsageError(
            f"models_beside has a model for {', '.join(unknown)}; the caches beside {cache.path} are "
            f"{', '.join(cache.beside) or 'none'}"
        )
    models: list[tuple[SplicedModel, list[str]]] = []
    if model is not None:
        models.append((model, list(cache.manifest.hooks)))
    for name, other in beside.items():
        models.append((ModelBeside(other, name), [f"{name}:{hook}" for hook in cache.beside[name].hooks]))
    return models


def reconstruct_in_batches(
    sae: SAE,
    cache: ActivationCache,
    split: str,
    row_P: NDArray[np.int64],
    settings: EvaluateConfig,
    group: Group = ALONE,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Reconstruct the cache's rows ``row_P`` int64 [P], ascending, by the training rule in shuffled batches.

    A batch has the size of training, or somewhat more, so that no row is left over. What the language model
    runs at a time then does not matter.

    Returns:
        A function of rows [m, D], which it ignores, and their numbers, int64 [m]: their raw reconstructions
        [m, O].
    """
    size = 4 * len(row_P) * sae.cfg.d_decoded
    check_memory(size, torch.device("cpu"), f"reconstructions of {len(row_P):,} rows", "lower ce_tokens")
    whole_PO = torch.empty(len(row_P), sae.cfg.d_decoded)
    order = np.random.default_rng(settings.seed).permutation(len(row_P))
    parts = np.array_split(order, max(1, len(row_P) // batch_rows_of(sae, settings)))
    done = [whole_PO[:0]]
    with group.together():
        for number in group.share(len(parts)):
            place_B = np.sort(parts[number])
            read = read_rows(sae, cache, split, row_P[place_B])
            codes = sae.encode_sparse(read.x, as_trained=True, batch_number=number)
            done.append(sae.to_raw(sae.predict(codes, read.x), read.removed).cpu())
    places = np.concatenate([np.sort(part) for part in parts])
    whole_PO[torch.from_numpy(places)] = torch.cat(group.gather_rows(torch.cat(done)))
    numbers_P = torch.from_numpy(row_P)
    return lambda _, wanted_m: whole_PO[torch.searchsorted(numbers_P, wanted_m)]


def reconstruct_cached(sae: SAE, cache: ActivationCache, split: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Reconstruct rows from what the cache holds of them: for SAEs that read more than the hook they replace.

    Returns:
        A function of rows [m, D], which it ignores, and their numbers, int64 [m]: their raw reconstructions
        [m, O].
    """

    def reconstruct(_: Tensor, row_m: Tensor) -> Tensor:
        read = read_rows(sae, cache, split, row_m.cpu().numpy())
        return sae.to_raw(sae.predict(sae.encode_sparse(read.x), read.x), read.removed)

    return reconstruct
