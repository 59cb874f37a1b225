"""Measures one SAE on rows of a cache: fidelity, codes, density, and the contexts of sampled latents.

Legend: B rows of a block, D model width, F latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..common.errors import UsageError
from ..common.progress import progress_bar
from ..store import ActivationCache
from ..train import SAE
from .config import EvaluateConfig
from .contexts import ActivationStream, DecodeToken, Places, describe_latent, sample_latents
from .metrics import CodeStream, ReconstructionStream, density_curve, l0_histogram
from .results import LatentResult, SaeResult

if TYPE_CHECKING:
    from tqdm import tqdm

_TRAIN_SHARE = 0.1  # of the training rows, measured if there are no held-out rows


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """The rows that are measured: ``first`` to ``first + count`` of ``split``."""

    split: str
    first: int
    count: int

    def blocks(self, rows_per_block: int) -> Iterator[range]:
        """Ranges of row numbers of the split, in order."""
        last = self.first + self.count
        for start in range(self.first, last, rows_per_block):
            yield range(start, min(start + rows_per_block, last))


def choose_rows(cache: ActivationCache, max_rows: int) -> tuple[MeasuredRows, list[str]]:
    """Choose the first ``max_rows`` held-out rows, or the last tenth of the training rows if there are none.

    Returns:
        The rows, and warnings: one if training rows are measured.
    """
    heldout = cache.num_rows("heldout")
    if heldout:
        return MeasuredRows(split="heldout", first=0, count=min(heldout, max_rows)), []
    count = min(max_rows, max(1, round(len(cache) * _TRAIN_SHARE)))
    warning = (
        f"The cache has no held-out rows, so the last {count:,} training rows were measured, on which the "
        "SAEs may have been trained. Harvest with heldout_fraction to measure on unseen documents."
    )
    return MeasuredRows(split="train", first=len(cache) - count, count=count), [warning]


def measure_sae(
    sae: SAE,
    name: str,
    cache: ActivationCache,
    rows: MeasuredRows,
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
    normalized, raw = ReconstructionStream(), ReconstructionStream()
    codes = CodeStream(cfg.num_latents)
    passes = 1 if places is None else 2
    with progress_bar(name, "row", passes * rows.count, hidden=not show_progress) as progress:
        for block in rows.blocks(settings.rows_per_block):
            x_BD, raw_BD = _read(sae, cache, rows.split, block)
            pairs = sae.encode_sparse(x_BD)
            reconstruction_BD = sae.decode(pairs)
            normalized.update(x_BD, reconstruction_BD)
            _, removed = sae.normalizer.apply(raw_BD)
            raw.update(raw_BD, sae.normalizer.invert(reconstruction_BD, removed))
            codes.update(pairs)
            progress.update(len(block))
        latents = []
        if places is not None:
            latents = _latents(sae, cache, rows, places, codes, settings, decode_token, progress)
    if not isfinite(normalized.result().mse):
        raise UsageError(f"SAE {name} reconstructs values that are not finite: its weights are damaged")
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
        normalized=normalized.result(),
        raw=raw.result(),
        codes=codes.result(),
        language_model=None,
        density=density_curve(codes.density(), codes.num_rows),
        features_per_token=l0_histogram(codes.rows_by_l0),
        latents=latents,
    )


def _read(sae: SAE, cache: ActivationCache, split: str, block: range) -> tuple[Tensor, Tensor]:
    """Read a block of rows, in the SAE's normalization and raw: float32 [B, D] each, on the SAE's device."""
    index = np.arange(block.start, block.stop)
    device = sae.W_dec.device
    x_BD = cache.rows(sae.cfg.hook, index, split=split, normalization=sae.normalizer.kind)
    raw_BD = x_BD
    if sae.normalizer.kind != "none":
        raw_BD = cache.rows(sae.cfg.hook, index, split=split, normalization="none")
    return x_BD.to(device), raw_BD.to(device)


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
    for block in rows.blocks(settings.rows_per_block):
        index = np.arange(block.start, block.stop)
        x_BD = cache.rows(sae.cfg.hook, index, split=rows.split, normalization=sae.normalizer.kind)
        stream.update(sae.encode_sparse(x_BD.to(sae.W_dec.device)), block.start - rows.first)
        progress.update(len(block))
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
        )
        for latent in sampled
    ]
