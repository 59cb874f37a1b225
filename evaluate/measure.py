"""Measures one SAE on rows of a cache: fidelity, codes, density, and what can be seen of its latents.

Legend: B rows of a block, D width of what is encoded, O width of what is reconstructed, F latents.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.errors import UsageError
from ..common.memory import check_memory
from ..common.progress import progress_bar
from ..store import ActivationCache
from ..train import SAE, Pairs
from ..train.sae_hooks import decoded_hooks, encoded_hooks, name_of, read_hooks_side_by_side
from .config import EvaluateConfig
from .hook_measures import HookStreams
from .latents.codes import CodeSpill
from .latents.collect import CollectSettings, collect_latents
from .latents.contexts import DecodeToken, sample_latents
from .latents.logits import Unembedding
from .latents.rows import LatentRows
from .latents.sample import describe_latents
from .latents.table import Latents
from .metrics import CodeStream, ReconstructionStream, density_curve, l0_histogram
from .metrics.collapse import measure_collapse
from .metrics.progressive import ProgressiveStream
from .metrics.zipf import find_dying, fit_zipf
from .results import SaeResult
from .rows import MeasuredRows, RowGroups, batch_rows_of, read_blocks

_MORE_ROWS = 4096  # encoded at once


@dataclass(frozen=True, kw_only=True)
class LatentView:
    """What latents are looked at with.

    Attributes:
        rows: the rows, with the text around them.
        folder: where codes are kept for the time being.
        unembedding: for logit effects; None where there is no language model.
    """

    rows: LatentRows
    folder: Path
    decode_token: DecodeToken
    unembedding: Unembedding | None = None


def measure_sae(
    sae: SAE,
    name: str,
    cache: ActivationCache,
    rows: MeasuredRows,
    groups: RowGroups,
    view: LatentView | None,
    settings: EvaluateConfig,
    *,
    show_progress: bool,
) -> tuple[SaeResult, Latents | None]:
    """Measure what needs no language model; the caller fills in ``sae_dir`` and ``language_model``.

    The rows are read and encoded once. With a ``view`` their codes are kept on disk meanwhile, and all
    latents are described from them.
    """
    cfg = sae.cfg
    normalized, raw = ReconstructionStream(groups.count), ReconstructionStream(groups.count)
    codes, progressive = CodeStream(cfg.num_latents, groups.count), ProgressiveStream(sae)
    by_hook = HookStreams(sae, groups.count)
    has_skip = any(part.skip for part in cfg.predicted)
    more = np.zeros(0, dtype=np.int64) if view is None else view.rows.more
    bar = progress_bar(name, "row", rows.count + len(more), hidden=not show_progress)
    with bar as progress, ExitStack() as stack:
        spill = None
        if view is not None:
            num_tokens = len(view.rows.passages)
            spill = CodeSpill(view.folder, cfg.num_latents, num_tokens, settings.codes_on_disk)
            stack.enter_context(spill)
        for number, index_B in enumerate(read_blocks(rows, sae, settings)):
            read = read_rows(sae, cache, rows.split, index_B)
            pairs = encode(sae, read.x, settings, number)
            decoded_BO = sae.predict(pairs, read.x)
            if not bool(torch.isfinite(decoded_BO).all()):
                raise UsageError(
                    f"SAE {name} reconstructs values that are not finite: its weights are damaged"
                )
            place_B = index_B - rows.first
            group_B = groups.of(place_B)
            normalized.update(read.target, decoded_BO, group_B)
            raw_decoded_BO = sae.to_raw(decoded_BO, read.removed)
            raw.update(read.raw, raw_decoded_BO, group_B)
            by_hook.update(read.target, decoded_BO, read.raw, raw_decoded_BO, group_B)
            codes.update(pairs, group_B)
            without_codes_BO = decoded_BO - sae.decode(pairs) + sae.b_dec if has_skip else None
            progressive.update(read.target, pairs, without_codes_BO)
            if spill is not None and view is not None:
                spill.update(pairs, view.rows.offset[place_B])
            progress.update(len(index_B))
        latents = None
        if spill is not None and view is not None:
            parts = np.split(np.arange(len(more)), range(_MORE_ROWS, len(more), _MORE_ROWS))
            for number, part in enumerate(parts):
                x_BD = read_rows(sae, cache, "train", more[part]).x
                spill.update(encode(sae, x_BD, settings, number), view.rows.more_offset[part])
                progress.update(len(part))
            latents = _collect(sae, name, cache, view, spill, settings)
    density_F = codes.density()
    law = fit_zipf(density_F)
    dying = None if law is None else int((density_F[find_dying(density_F, law)] > 0).sum())
    result = SaeResult(
        name=name,
        sae_dir="",
        kind=cfg.kind,
        hook=cfg.hook,
        d_model=cfg.d_model,
        num_latents=cfg.num_latents,
        k=cfg.k,
        normalization=sae.normalizer.kind,
        config=cfg.model_dump(mode="json"),
        normalized=normalized.result(settings.seed),
        raw=raw.result(settings.seed),
        codes=codes.result(settings.seed).model_copy(update={"dying": dying}),
        language_model=None,
        density=density_curve(density_F, codes.num_rows),
        features_per_token=l0_histogram(codes.rows_by_l0),
        rule=settings.rule,
        rows=codes.num_rows,
        zipf=law,
        progressive=progressive.result(),
        collapse=measure_collapse(sae.W_dec, settings.overlap_latents, settings.seed),
        latents=[]
        if latents is None or view is None
        else describe_latents(
            latents,
            view.rows,
            sample_latents(density_F, settings.num_latents, settings.seed),
            density_F.numpy(),
        ),
        target=name_of(cfg.predicted) or None,
        hooks=by_hook.results(settings.seed, density_F),
    )
    return result, latents


def _collect(
    sae: SAE,
    name: str,
    cache: ActivationCache,
    view: LatentView,
    spill: CodeSpill,
    settings: EvaluateConfig,
) -> Latents:
    return collect_latents(
        sae,
        spill.finish(),
        view.rows.passages,
        CollectSettings(
            num_contexts=settings.num_contexts,
            per_fifth=settings.contexts_per_fifth,
            num_sampled=settings.sampled_activations,
            radius=settings.context_radius,
            seed=settings.seed,
        ),
        name=name,
        rows=view.rows.counts,
        fingerprint=cache.fingerprint,
        unembedding=view.unembedding,
        decode_token=view.decode_token,
    )


def encode(sae: SAE, x_BD: Tensor, settings: EvaluateConfig, number: int) -> Pairs:
    """The codes of normalized rows, the ``number``-th batch of them, by the rule of the settings."""
    return sae.encode_sparse(x_BD, as_trained=settings.rule == "batch", batch_number=number)


class SaeRows(NamedTuple):
    """Rows of the cache for an SAE, on its device: float32.

    ``x`` [B, D] are encoded, ``target`` [B, O] should come out, both normalized as in training; ``raw`` are
    the latter raw, and ``removed`` is what :meth:`SAE.to_raw` needs.
    """

    x: Tensor
    target: Tensor
    raw: Tensor
    removed: Any


def read_rows(sae: SAE, cache: ActivationCache, split: str, index_B: NDArray[np.int64]) -> SaeRows:
    """Read the rows that an SAE encodes and those that it should give, of the same tokens."""
    device = sae.W_dec.device
    x_BD, raw_BD = read_hooks_side_by_side(cache, encoded_hooks(sae.cfg), index_B, split, device)
    _, removed = sae.normalizer.apply(raw_BD)
    if not sae.cfg.predicted:
        return SaeRows(x_BD, x_BD, raw_BD, removed)
    return SaeRows(
        x_BD, *read_hooks_side_by_side(cache, decoded_hooks(sae.cfg), index_B, split, device), removed
    )


def reconstruct_in_batches(
    sae: SAE, cache: ActivationCache, split: str, row_P: NDArray[np.int64], settings: EvaluateConfig
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
    for number, part in enumerate(parts):
        place_B = np.sort(part)
        read = read_rows(sae, cache, split, row_P[place_B])
        codes = sae.encode_sparse(read.x, as_trained=True, batch_number=number)
        whole_PO[torch.from_numpy(place_B)] = sae.to_raw(sae.predict(codes, read.x), read.removed).cpu()
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
