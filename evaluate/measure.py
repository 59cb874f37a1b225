"""Measures one SAE on rows of a cache: fidelity, codes, density, and the contexts of sampled latents.

Legend: B rows of a block, D width of what is encoded, O width of what is reconstructed, F latents.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.errors import UsageError
from ..common.memory import check_memory
from ..common.progress import progress_bar
from ..store import ActivationCache
from ..train import SAE, Pairs
from ..train.sae_hooks import decoded_hooks, encoded_hooks, read_hooks_side_by_side
from .config import EvaluateConfig
from .contexts import ActivationStream, DecodeToken, Places, describe_latent, sample_latents
from .hook_measures import HookStreams
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
    by_hook = HookStreams(sae, groups.count)
    has_skip = cfg.target is not None and cfg.target.skip
    passes = 1 if places is None else 2
    with progress_bar(name, "row", passes * rows.count, hidden=not show_progress) as progress:
        for index_B in read_blocks(rows, sae, settings):
            read = read_rows(sae, cache, rows.split, index_B)
            pairs = encode(sae, read.x, settings)
            decoded_BO = sae.predict(pairs, read.x)
            if not bool(torch.isfinite(decoded_BO).all()):
                raise UsageError(
                    f"SAE {name} reconstructs values that are not finite: its weights are damaged"
                )
            group_B = groups.of(index_B - rows.first)
            normalized.update(read.target, decoded_BO, group_B)
            raw_decoded_BO = sae.to_raw(decoded_BO, read.removed)
            raw.update(read.raw, raw_decoded_BO, group_B)
            by_hook.update(read.target, decoded_BO, read.raw, raw_decoded_BO, group_B)
            codes.update(pairs, group_B)
            without_codes_BO = decoded_BO - sae.decode(pairs) + sae.b_dec if has_skip else None
            progressive.update(read.target, pairs, without_codes_BO)
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
        target=None if cfg.target is None else cfg.target.hook,
        hooks=by_hook.results(settings.seed, density_F),
    )


def encode(sae: SAE, x_BD: Tensor, settings: EvaluateConfig) -> Pairs:
    """The codes of normalized rows by the rule of the settings."""
    return sae.encode_sparse(x_BD, as_trained=settings.rule == "batch")


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
    if sae.cfg.target is None:
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
    for part in np.array_split(order, max(1, len(row_P) // batch_rows_of(sae, settings))):
        place_B = np.sort(part)
        read = read_rows(sae, cache, split, row_P[place_B])
        decoded_BO = sae.predict(sae.encode_sparse(read.x, as_trained=True), read.x)
        whole_PO[torch.from_numpy(place_B)] = sae.to_raw(decoded_BO, read.removed).cpu()
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
    for index_B in read_blocks(rows, sae, settings):
        read = read_rows(sae, cache, rows.split, index_B)
        stream.update(encode(sae, read.x, settings), index_B - rows.first)
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
