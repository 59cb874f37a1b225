"""Measures one SAE on rows of a cache: fidelity, codes, density, and the contexts of sampled latents.

Legend: B rows of a block, D model width, F latents.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.errors import UsageError
from ..common.memory import check_memory
from ..common.progress import progress_bar
from ..store import ActivationCache
from ..train import SAE, Pairs
from .config import EvaluateConfig
from .contexts import ActivationStream, DecodeToken, Places, describe_latent, sample_latents
from .metrics import CodeStream, ReconstructionStream, density_curve, l0_histogram
from .metrics.collapse import measure_collapse
from .metrics.progressive import ProgressiveStream
from .metrics.zipf import find_dying, fit_zipf
from .results import LatentResult, SaeResult
from .rows import MeasuredRows, RowGroups, batch_rows_of, read_blocks

if TYPE_CHECKING:
    from tqdm import tqdm


def measure_sae(
    sae: SAE,
    name: str,
    cache: ActivationCache,
    rows: MeasuredRows,
    groups: RowGroups,
    places: Places | None,
    settings: EvaluateConfig,
    decode_token: DecodeToken,
    *,
    show_progress: bool,
) -> SaeResult:
    """Measure what needs no language model; the caller fills in ``sae_dir`` and ``language_model``.

    The rows are read once for the metrics, and once more for the contexts if ``places`` are given, because
    the densities decide which latents are shown.
    """
    cfg = sae.cfg
    normalized, raw = ReconstructionStream(groups.count), ReconstructionStream(groups.count)
    codes, progressive = CodeStream(cfg.num_latents, groups.count), ProgressiveStream(sae)
    passes = 1 if places is None else 2
    with progress_bar(name, "row", passes * rows.count, hidden=not show_progress) as progress:
        for number, index_B in enumerate(read_blocks(rows, sae, settings)):
            x_BD, raw_BD = read_rows(sae, cache, rows.split, index_B)
            pairs = encode(sae, x_BD, settings, number)
            reconstruction_BD = sae.decode(pairs)
            if not bool(torch.isfinite(reconstruction_BD).all()):
                raise UsageError(
                    f"SAE {name} reconstructs values that are not finite: its weights are damaged"
                )
            group_B = groups.of(index_B - rows.first)
            normalized.update(x_BD, reconstruction_BD, group_B)
            _, removed = sae.normalizer.apply(raw_BD)
            raw.update(raw_BD, sae.normalizer.invert(reconstruction_BD, removed), group_B)
            codes.update(pairs, group_B)
            progressive.update(x_BD, pairs)
            progress.update(len(index_B))
        latents = []
        if places is not None:
            latents = _latents(sae, cache, rows, places, codes, settings, decode_token, progress)
    density_F = codes.density()
    law = fit_zipf(density_F)
    dying = None if law is None else int((density_F[find_dying(density_F, law)] > 0).sum())
    return SaeResult(
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
        latents=latents,
        rule=settings.rule,
        rows=codes.num_rows,
        zipf=law,
        progressive=progressive.result(),
        collapse=measure_collapse(sae.W_dec, settings.overlap_latents, settings.seed),
    )


def encode(sae: SAE, x_BD: Tensor, settings: EvaluateConfig, number: int) -> Pairs:
    """The codes of normalized rows, the ``number``-th batch of them, by the rule of the settings."""
    return sae.encode_sparse(x_BD, as_trained=settings.rule == "batch", batch_number=number)


def read_rows(
    sae: SAE, cache: ActivationCache, split: str, index_B: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Read rows in the SAE's own normalization, and raw: float32 [B, D] each, on the SAE's device.

    A normalization by one number for all rows uses the number of the SAE's training, also on another cache.
    """
    raw_BD = cache.rows(sae.cfg.hook, index_B, split=split, normalization="none").to(sae.W_dec.device)
    if sae.normalizer.starts_from == "raw":
        return sae.normalizer.apply(raw_BD)[0], raw_BD
    x_BD = cache.rows(sae.cfg.hook, index_B, split=split, normalization=sae.normalizer.kind)
    return x_BD.to(sae.W_dec.device), raw_BD


def reconstruct_in_batches(
    sae: SAE, cache: ActivationCache, split: str, row_P: NDArray[np.int64], settings: EvaluateConfig
) -> Callable[[Tensor, Tensor], Tensor]:
    """Reconstruct the cache's rows ``row_P`` int64 [P], ascending, by the training rule in shuffled batches.

    A batch has the size of training, or somewhat more, so that no row is left over. What the language model
    runs at a time then does not matter.

    Returns:
        A function of rows [m, D], which it ignores, and their numbers, int64 [m]: their raw reconstructions.
    """
    size = 4 * len(row_P) * sae.cfg.d_model
    check_memory(size, torch.device("cpu"), f"reconstructions of {len(row_P):,} rows", "lower ce_tokens")
    whole_PD = torch.empty(len(row_P), sae.cfg.d_model)
    order = np.random.default_rng(settings.seed).permutation(len(row_P))
    parts = np.array_split(order, max(1, len(row_P) // batch_rows_of(sae, settings)))
    for number, part in enumerate(parts):
        place_B = np.sort(part)
        x_BD, raw_BD = read_rows(sae, cache, split, row_P[place_B])
        _, removed = sae.normalizer.apply(raw_BD)
        codes = sae.encode_sparse(x_BD, as_trained=True, batch_number=number)
        reconstruction_BD = sae.decode(codes)
        whole_PD[torch.from_numpy(place_B)] = sae.normalizer.invert(reconstruction_BD, removed).cpu()
    numbers_P = torch.from_numpy(row_P)
    return lambda _, wanted_m: whole_PD[torch.searchsorted(numbers_P, wanted_m)]


def _latents(
    sae: SAE,
    cache: ActivationCache,
    rows: MeasuredRows,
    places: Places,
    codes: CodeStream,
    settings: EvaluateConfig,
    decode_token: DecodeToken,
    progress: "tqdm[Any]",
) -> list[LatentResult]:
    density = codes.density()
    sampled = sample_latents(density, settings.num_latents, settings.seed)
    stream = ActivationStream(sampled)
    for number, index_B in enumerate(read_blocks(rows, sae, settings)):
        x_BD, _ = read_rows(sae, cache, rows.split, index_B)
        stream.update(encode(sae, x_BD, settings, number), index_B - rows.first)
        progress.update(len(index_B))
    columns = stream.columns()
    by_rank = np.argsort(-density.numpy(), kind="stable")
    rank_of = np.empty(len(by_rank), dtype=np.int64)
    rank_of[by_rank] = np.arange(1, len(by_rank) + 1)
    return [
        describe_latent(
            cache,
            places,
            latent,
            columns[latent],
            rank=int(rank_of[latent]),
            num_contexts=settings.num_contexts,
            radius=settings.context_radius,
            decode_token=decode_token,
            num_rows=codes.num_rows,
        )
        for latent in sampled
    ]
