"""Thresholds of inference, set so that held-out rows have a wanted number of active latents.

Legend: N rows, F latents.
"""

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...store.reading.reader import ActivationCache
from ..backends.sources import Encoder
from ..sae import SAE
from ..selection.pre_activations import PreActivations

TINY = 1e-12  # in place of a threshold of 0, which no factor would change


def calibrated(sae: SAE, x: Tensor, l0: float | None = None) -> SAE:
    """``sae`` with thresholds under which the rows ``x`` have ``l0`` active latents on average.

    One threshold becomes what the round(l0 * N) largest pre-activations exceed; one for each latent are all
    multiplied by the same factor, so that what training learned about latents stays. Equal pre-activations at
    the threshold are active together or not at all.

    Args:
        sae: of a kind with a threshold (``sae.threshold``). Its other tensors are shared, not copied.
        x: float32 [N, D], normalized rows that training did not see.
        l0: None is what the rule trained for (``sae.cfg.k``).

    Raises:
        UsageError: the rule has no threshold, no ``l0`` is known, or more is wanted than is above 0.
    """
    l0 = wanted_l0(sae, l0)
    assert sae.threshold is not None, "wanted_l0 has checked that"
    threshold = sae.threshold.expand(sae.cfg.num_latents)
    usable = threshold.isfinite().nonzero().flatten()  # the others were never active, and stay so
    base = threshold[usable].clamp_min(TINY)[:, None] if sae.threshold.dim() else 1.0
    x_centered = x.float() - sae.b_dec
    bias = (sae.b_enc[usable, None] / base).flatten()
    encoder = Encoder(x_centered, sae.W_enc[usable] / base, bias)
    total = round(l0 * x.shape[0])
    most = x.shape[0] * usable.numel()
    scores = PreActivations(encoder, num_latents=usable.numel())
    chosen = scores.largest_of_batch(min(total + 1, most)).value
    largest = chosen[chosen > 0].sort(descending=True).values
    if not 0 < total <= largest.numel():
        raise UsageError(
            f"SAE {sae.cfg.name}: l0={l0:g} cannot be had by a threshold: {x.shape[0]} rows have "
            f"{largest.numel() / x.shape[0]:.4g} latents above 0 on average; ask for less"
        )
    factor = _between(largest, total)
    updated = sae.threshold * factor if sae.threshold.dim() else factor.to(sae.threshold)
    if sae.threshold.dim():
        updated = torch.where(sae.threshold > 0, updated, TINY * factor)
    return SAE(sae.cfg, {**dict(sae.named_buffers()), "threshold": updated})


def calibrated_on(sae: SAE, cache: ActivationCache, l0: float | None = None, num_rows: int = 16384) -> SAE:
    """:func:`calibrated` on the first ``num_rows`` held-out rows of ``cache``, normalized as in training.

    Raises:
        UsageError: also when the cache has no held-out rows.
    """
    num_rows = min(num_rows, cache.num_rows("heldout"))
    if num_rows == 0:
        raise UsageError("the cache has no held-out rows to calibrate thresholds on")
    rows = torch.arange(num_rows).numpy()
    x = cache.rows(sae.cfg.hook, rows, "heldout", sae.cfg.normalization["kind"])
    return calibrated(sae, x.to(sae.W_enc.device), l0)


def wanted_l0(sae: SAE, l0: float | None) -> float:
    """``l0``, or what the rule trained for.

    Raises:
        UsageError: the rule has no threshold, or neither is known.
    """
    if sae.threshold is None:
        raise UsageError(
            f"SAE {sae.cfg.name}: inference by {sae.cfg.inference} has no threshold to calibrate"
        )
    l0 = sae.cfg.k if l0 is None else l0
    if l0 is None:
        raise UsageError(f"SAE {sae.cfg.name}: a {sae.cfg.kind} has no l0 of its own; give one")
    return l0


def _between(largest: Tensor, total: int) -> Tensor:
    """A value below the ``total``-th of ``largest`` (descending, above 0), and not below the next one."""
    last = largest[total - 1].double()
    following = largest[total].double() if total < largest.numel() else torch.zeros_like(last)
    return ((last + following) / 2).float()
