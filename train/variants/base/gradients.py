"""The exact gradients of sparse codes, written by hand: everything after selection costs O(P), not O(B * F).

With codes c = pre-activations at the selected pairs, x' = x - b_dec, e = c W_dec - x' = reconstruction - x:

    loss            = weight / R * sum over rows |e|²
    d loss / d c    = 2 weight / R * <e[row], W_dec[latent]>                      (at the pairs only)
    d loss / d W_dec[latent] = 2 weight / R * sum over its pairs c * e[row]
    d loss / d W_enc[latent] = sum over its pairs (d loss / d pre) * x'[row]
    d loss / d b_enc[latent] = sum over its pairs  d loss / d pre
    d loss / d b_dec         = 2 weight / R * sum over rows e  -  (sum over pairs d loss / d pre) W_enc

Legend: R rows of the step, B rows of a part, D model width, F latents, P pairs.
"""

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from ....common.fvu import sum_of_squares
from ...backends.plain.products import weighted_sum
from ...pairs import Pairs
from .products import accumulate_by_latent, decode, sddmm
from .rows import Batch


class AuxiliaryLoss(Protocol):
    """Adds a loss term on a part of the rows, given the error [B, D] of the main reconstruction."""

    def __call__(self, part: Batch, error: Tensor) -> None: ...


def train_selected(batch: Batch, codes: Pairs, auxiliary: Iterable[AuxiliaryLoss] = ()) -> None:
    """Run forward and backward for codes that are the pre-activations of the selected pairs."""
    auxiliary = tuple(auxiliary)
    for rows, part in batch.split():
        part_codes = codes.slice_rows(rows.start, rows.stop)
        error, d_value = reconstruct(part, part_codes)
        backpropagate(part, part_codes, d_value)
        part.record(part_codes, error)
        for loss in auxiliary:
            loss(part, error)


def reconstruct(
    batch: Batch,
    codes: Pairs,
    target: Tensor | None = None,
    *,
    weight: float = 1.0,
    name: str = "mse",
    into_decoder: bool = True,
) -> tuple[Tensor, Tensor]:
    """Add ``weight`` * mean over rows of |decoded codes - target|², and its gradient to the decoder.

    Args:
        codes: [B, F].
        target: [B, D], for example a residual, reconstructed without the decoder's bias. None takes the
            batch's target and uses the bias, which then gets a gradient.
        name: the name of the loss term in the metrics.
        into_decoder: False gives W_dec and b_dec no gradient, as if they were detached.

    Returns:
        The error, reconstruction - target [B, D], and d loss / d value at the pairs [P].
    """
    W_dec = batch.parameters["W_dec"]
    error = decode(codes, W_dec).sub_(batch.target_centered if target is None else target)
    scale = 2.0 * weight / batch.step_rows
    d_value = sddmm(codes, error, W_dec).mul_(scale)
    if into_decoder:
        accumulate_by_latent(codes, codes.value * scale, error, batch.gradients["W_dec"])
        if target is None:
            batch.gradients["b_dec"].add_(error.sum(0), alpha=scale)
    batch.outcome.add_loss(name, sum_of_squares(error) * (weight / batch.step_rows))
    return error, d_value


def backpropagate(batch: Batch, codes: Pairs, d_pre: Tensor, d_bias: Tensor | None = None) -> None:
    """Carry d loss / d pre-activation at the pairs [P] into W_enc, b_enc, and b_dec through x - b_dec.

    ``d_bias`` [P] is the gradient for b_enc, if it differs from the one for x W_enc.
    """
    accumulate_by_latent(codes, d_pre, batch.x_centered, batch.gradients["W_enc"])
    per_latent = batch.backend.sum_per_latent(codes, d_pre)
    batch.outcome.through_encoder.add_(per_latent)
    batch.gradients["b_enc"].add_(
        per_latent if d_bias is None else batch.backend.sum_per_latent(codes, d_bias)
    )


def finish_gradients(batch: Batch) -> None:
    """Add the gradient that reaches ``b_dec`` through the pre-activations; call it after all parts."""
    batch.gradients["b_dec"].sub_(weighted_sum(batch.outcome.through_encoder, batch.parameters["W_enc"]))
