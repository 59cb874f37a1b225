"""Compares an export with its SAE on the same rows: are the same latents active, with the same values?

Legend: B rows of a block, D model width, F latents, K active latents.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isnan, sqrt

import numpy as np
import torch
from torch import Tensor

from ...common.errors import SaecacheError
from ...common.fvu import FVU
from ...store import ActivationCache
from ...store.normalization import RowState
from ...train import SAE
from ...train.sae_hooks import encoded_hooks
from ..rows import MeasuredRows
from .format import Forward
from .space import Space

MASK_LIMIT = 1e-3  # rounding moves a few pre-activations across a threshold, never one in a thousand
APPROXIMATE_MASK_LIMIT = 1e-2  # for a form that is not the SAE's own rule
FEW_PAIRS = 3  # so many may differ whatever their share, which says little about so few
VALUE_LIMIT = 1e-3
TINY = 1e-30
RANDOM_ROWS, BLOCK_ROWS = 512, 512
NOISE = 0.1  # of a row's norm, in random directions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences between an SAE and its export.

    Attributes:
        rows: what was compared on: ``random``, or a split of the cache.
        num_pairs: pairs (row, latent) that are active in the SAE or in the export.
        mask_difference: the share of these pairs that is active in only one of the two.
        feature: the largest difference of a feature that is active in both, relative to the largest feature.
        reconstruction: over the rows whose active latents agree, the largest norm of the difference of the
            two reconstructions, relative to the norm of the row less its mean.
        reconstruction_all: the same over all rows.
        l0, l0_exported: active latents per row.
        fvu, fvu_exported: FVU of the rows as they were handed in; None of a transcoder, whose rows to predict
            are not at hand.
    """

    rows: str
    num_rows: int
    num_pairs: int
    mask_difference: float
    feature: float
    reconstruction: float
    reconstruction_all: float
    l0: float
    l0_exported: float
    fvu: float | None
    fvu_exported: float | None


@torch.no_grad()
def compare(
    sae: SAE, forward: Forward, space: Space, factor: Tensor, blocks: Iterable[Tensor], rows: str
) -> Comparison:
    """Run the SAE and its export on the same rows.

    Args:
        factor: [] or [F]; the export should give the SAE's features times this.
        blocks: rows [B, D] as ``space`` says they are handed in; at least one row in all.
    """
    num_rows = one = either = l0 = l0_exported = 0
    feature = largest = agreeing = everywhere = 0.0
    fvu, fvu_exported = FVU(), FVU()
    for x_BD in blocks:
        ours_BF = sae.encode(x_BD, input=space.rows)
        ours_BF, ours_BD = ours_BF * factor, sae(x_BD, input=space.rows)
        theirs_BF, theirs_BD = forward(x_BD)
        if sae.cfg.predicted:  # differences are relative to its own predictions then
            x_BD = ours_BD
        else:
            fvu.add(x_BD, ours_BD)
            fvu_exported.add(x_BD, theirs_BD)
        active, in_export = ours_BF != 0, theirs_BF != 0
        one += int((active ^ in_export).sum())
        either += int((active | in_export).sum())
        l0, l0_exported = l0 + int(active.sum()), l0_exported + int(in_export.sum())
        feature = max(feature, _largest((theirs_BF - ours_BF)[active & in_export].abs()))
        largest = max(largest, _largest(ours_BF.abs()))
        size_B = (x_BD - x_BD.mean(1, keepdim=True)).norm(dim=1).clamp_min(TINY)
        difference_B = (theirs_BD - ours_BD).norm(dim=1) / size_B
        agreeing = max(agreeing, _largest(difference_B[(active == in_export).all(1)]))
        everywhere = max(everywhere, _largest(difference_B))
        num_rows += len(x_BD)
    return Comparison(
        rows=rows,
        num_rows=num_rows,
        num_pairs=either,
        mask_difference=one / max(either, 1),
        feature=feature / max(largest, TINY),
        reconstruction=agreeing,
        reconstruction_all=everywhere,
        l0=l0 / num_rows,
        l0_exported=l0_exported / num_rows,
        fvu=None if sae.cfg.predicted else fvu.value(),
        fvu_exported=None if sae.cfg.predicted else fvu_exported.value(),
    )


def _largest(values: Tensor) -> float:
    """The largest value; 0 if there is none, infinity if one is NaN, which no comparison would notice."""
    value = float(values.max()) if values.numel() else 0.0
    return torch.inf if isnan(value) else value


def choose_limits(exact: bool) -> dict[str, float]:
    """The largest differences that :func:`check` allows, by field of :class:`Comparison`."""
    mask = MASK_LIMIT if exact else APPROXIMATE_MASK_LIMIT
    return {"mask_difference": mask, "feature": VALUE_LIMIT, "reconstruction": VALUE_LIMIT}


def check(comparison: Comparison, limits: dict[str, float], *, who: str, advice: str) -> None:
    """Refuse an export that differs too much from its SAE.

    Args:
        limits: from :func:`choose_limits`. In any case ``FEW_PAIRS`` pairs may be active in only one of the
            two.

    Raises:
        SaecacheError: the export does not compute what the SAE does.
    """
    values = {name: float(getattr(comparison, name)) for name in limits}
    if comparison.mask_difference * comparison.num_pairs <= FEW_PAIRS + 0.5:
        values["mask_difference"] = 0.0
    over = [
        f"{name} {value:.2e}, at most {limits[name]:g}"
        for name, value in values.items()
        if value > limits[name]
    ]
    if over:
        raise SaecacheError(
            f"{who} would not compute what the SAE does, and was not written: on {comparison.num_rows:,} "
            f"{comparison.rows} rows the difference is {'; '.join(over)}. {advice}"
        )


def make_random_rows(sae: SAE, space: Space) -> Tensor:
    """Make rows of b_dec and a few decoder rows in random amounts: float32 [B, D], the same on every call.

    They are as ``space`` says they are handed in. If the normalization removes each row's mean and norm, raw
    rows get a mean and a standard deviation of their own, the latter around 1; if it removes the norm only,
    they get norms of their own, around sqrt(D).
    """
    generator = torch.Generator().manual_seed(0)
    num_latents, d_model = sae.cfg.num_latents, sae.cfg.d_model
    directions_FD, centre_D = (sae.W_enc, sae.b_in) if sae.cfg.predicted else (sae.W_dec, sae.b_dec)
    num_active = min(num_latents, max(1, round(sae.cfg.k or 8)))
    latent_BK = torch.randint(num_latents, (RANDOM_ROWS, num_active), generator=generator)
    amount_BK = torch.rand(latent_BK.shape, generator=generator)
    if sae.cfg.num_layers == 1:
        row_BD = torch.einsum("bk,bkd->bd", amount_BK, directions_FD[latent_BK])
    else:  # each latent's direction is of the rows of its layer
        layer_BKL = torch.nn.functional.one_hot(
            latent_BK * sae.cfg.num_layers // num_latents, sae.cfg.num_layers
        )
        sums = torch.einsum("bk,bkl,bkd->bld", amount_BK, layer_BKL.float(), directions_FD[latent_BK])
        row_BD = sums.flatten(1)
    noise_BD = torch.randn(row_BD.shape, generator=generator)
    row_BD = row_BD / _norm(row_BD) + NOISE * noise_BD / _norm(noise_BD)
    normalizer = sae.normalizer
    if sae.cfg.hooks is not None:
        normalized_BD = row_BD * sqrt(d_model) + centre_D
        if space.rows == "normalized":
            return normalized_BD
        states = [RowState(factor=part.factor or 1.0) for part in normalizer.parts]
        inverted: Tensor = normalizer.invert(normalized_BD, states)
        return inverted
    unit = normalizer.starts_from == "unit"
    typical = normalizer.factor or 1.0 if unit else sqrt(d_model)
    raw_BD = row_BD * typical + centre_D
    if unit:
        mean, spread = (torch.randn(RANDOM_ROWS, 1, generator=generator) for _ in range(2))
        raw_BD = raw_BD / raw_BD.std(1, keepdim=True).clamp_min(1e-6) * (0.5 * spread).exp() + mean
    else:
        raw_BD = raw_BD / (normalizer.factor or 1.0)
        if normalizer.factor is None:
            raw_BD = raw_BD * torch.randn(RANDOM_ROWS, 1, generator=generator).mul(0.5).exp()
    return raw_BD if space.rows == "raw" else normalizer.apply(raw_BD)[0]


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = x.norm(dim=1, keepdim=True)
    return norm.clamp_min(1e-12)


def read_cached_rows(
    sae: SAE, space: Space, cache: ActivationCache, measured: MeasuredRows
) -> Iterator[Tensor]:
    """Read rows of the cache in blocks, as ``space`` says they are handed in: float32 [B, D]."""
    for block in measured.blocks(BLOCK_ROWS):
        index = np.arange(block.start, block.stop)
        parts = []
        for part in encoded_hooks(sae.cfg):
            kind = "none" if space.rows == "raw" else part.normalizer.kind
            rows = cache.rows(part.hook, index, split=measured.split, normalization=kind)
            parts.append(rows.float())
        yield parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
