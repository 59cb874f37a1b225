"""Set the thresholds of inference so that held-out rows have a given mean number of active latents.

Legend: N rows, F latents.
"""

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...store.reading.reader import ActivationCache
from ..engine.reading import input_bias
from ..sae import SAE
from ..sae_config import SAEConfig
from ..sae_hooks import encoded_hooks
from ..variants.base.rows import Rows

SHARE = 0.25  # of the held-out rows, for calibration
TINY = 1e-12  # replaces a threshold of 0, which no factor would change


def calibrated(sae: SAE, x: Tensor, l0: float | None = None) -> SAE:
    """Return ``sae`` with thresholds under which the rows ``x`` have ``l0`` active latents on average.

    A single threshold is set so that round(l0 * N) pre-activations exceed it. Thresholds per latent are all
    multiplied by one factor, which keeps what training learned about the latents. Pre-activations that
    tie at the threshold are all active or all inactive.

    Args:
        sae: an SAE with a threshold (``sae.threshold``). The result shares its other tensors.
        x: float32 [N, D], normalized rows that training did not see.
        l0: mean number of active latents; None takes the one of training (``sae.cfg.k``).

    Raises:
        UsageError: the SAE has no threshold, ``l0`` is unknown, or too few pre-activations are above 0.
    """
    l0 = target_l0(sae, l0)
    assert sae.threshold is not None, "target_l0 has checked that"
    threshold = sae.threshold.expand(sae.shards.count)
    usable = threshold.isfinite().nonzero().flatten()  # the others were never active and stay inactive
    base = threshold.clamp_min(TINY) if sae.threshold.dim() else torch.ones_like(threshold)
    group, tensors = sae.shards.group, dict(sae.named_buffers())
    rows = Rows(
        x_centered=x.float() - input_bias(tensors),
        parameters={"W_enc": sae.W_enc / base[:, None], "b_enc": sae.b_enc / base},
        state={},
        latent_shards=sae.shards,
    )
    scores = rows.pre_activations(usable)
    most = x.shape[0] * sae.shards.add_up(usable.numel())
    total = round(min(l0 * x.shape[0], most + 1.0))  # more than there are is refused below
    chosen = torch.cat(group.gather_rows(scores.largest_of_batch(min(total + 1, most)).value))
    largest = chosen[chosen > 0].sort(descending=True).values
    if not 0 < total <= largest.numel():
        raise UsageError(
            f"SAE {sae.cfg.name}: no threshold gives l0={l0:g}: {x.shape[0]} rows have only "
            f"{largest.numel() / x.shape[0]:.4g} latents above 0 on average; set a smaller l0"
        )
    factor = _split_after(largest, total)
    updated = sae.threshold * factor if sae.threshold.dim() else factor.to(sae.threshold)
    if sae.threshold.dim():
        updated = torch.where(sae.threshold > 0, updated, TINY * factor)
    return SAE(sae.cfg, {**dict(sae.named_buffers()), "threshold": updated}, sae.shards)


def calibrated_on(sae: SAE, cache: ActivationCache, l0: float | None = None, num_rows: int = 16384) -> SAE:
    """Call :func:`calibrated` with :func:`rows_for_calibration`, normalized as in training.

    Raises:
        UsageError: as :func:`calibrated`, and when the cache has no held-out rows.
    """
    chosen = rows_for_calibration(cache, num_rows)
    rows = torch.arange(chosen.start, chosen.stop).numpy()
    x = [cache.rows(part.hook, rows, "heldout", part.normalizer.kind) for part in encoded_hooks(sae.cfg)]
    return calibrated(sae, torch.cat(x, dim=1).to(sae.W_enc.device), l0)


def rows_for_calibration(cache: ActivationCache, num_rows: int) -> range:
    """The held-out rows that thresholds are set on: at most ``num_rows`` of the documents at their end.

    They begin with a document in the last quarter, and evaluation measures the rows before them. Where no
    document begins there, that quarter is taken.

    Raises:
        UsageError: the cache has no held-out rows, or one.
    """
    heldout = cache.num_rows("heldout")
    if heldout < 2:
        raise UsageError(
            f"calibration needs held-out rows beside those that are evaluated, but the cache has {heldout}: "
            "make it with a heldout_fraction"
        )
    first = heldout - max(1, int(heldout * SHARE))
    document = cache.locate(torch.arange(first - 1, heldout).numpy(), split="heldout")[2]
    begins = (document[1:] != document[:-1]).nonzero()[0]
    start = first + (int(begins[0]) if len(begins) else 0)
    return range(start, min(start + num_rows, heldout))


def first_row_of_calibration(cfg: SAEConfig) -> int | None:
    """The first held-out row of its cache that the thresholds of an SAE were set on; None without any.

    Raises:
        UsageError: its config says something that no run writes.
    """
    note = cfg.training.get("calibration")
    first = note.get("first_row") if isinstance(note, dict) else None
    if first is not None and (not isinstance(first, int) or first < 1):
        raise UsageError(f"SAE {cfg.name}: its cfg.json says calibration.first_row={first!r}, expected a row")
    return first


def target_l0(sae: SAE, l0: float | None) -> float:
    """Return ``l0``, or the number of active latents that the SAE was trained for.

    Raises:
        UsageError: the SAE has no threshold, or it was trained for no particular number.
    """
    if sae.threshold is None:
        raise UsageError(
            f"SAE {sae.cfg.name}: inference by {sae.cfg.inference} has no threshold to calibrate"
        )
    l0 = sae.cfg.k if l0 is None else l0
    if l0 is None:
        raise UsageError(
            f"SAE {sae.cfg.name}: a {sae.cfg.kind} SAE is not trained for a fixed l0; give the l0 to reach"
        )
    return l0


def _split_after(largest: Tensor, total: int) -> Tensor:
    """The middle between the ``total``-th of ``largest`` (descending, above 0) and the next one, or 0."""
    last = largest[total - 1].double()
    following = largest[total].double() if total < largest.numel() else torch.zeros_like(last)
    return ((last + following) / 2).float()
