"""The exact gradients of sparse codes, written by hand: everything after selection costs O(P), not O(B * F).

With codes c = pre-activations at the selected pairs, x' = x - b_dec, e = c W_dec - x' = reconstruction - x:

    loss            = weight / R * sum over rows |e|²
    d loss / d c    = 2 weight / R * <e[row], W_dec[latent]>                      (at the pairs only)
    d loss / d W_dec[latent] = 2 weight / R * sum over its pairs c * e[row]
    d loss / d W_enc[latent] = sum over its pairs (d loss / d pre) * x'[row]
    d loss / d b_enc[latent] = sum over its pairs  d loss / d pre
    d loss / d b_dec         = 2 weight / R * sum over rows e  -  (sum over pairs d loss / d pre) W_enc

A transcoder has x' = x - b_in and e = c W_dec + b_dec + x' W_skipᵀ - y for another target y. Then b_dec gets
the first term of its gradient alone, and with E = 2 weight / R * e of the reconstruction (without AuxK):

    d loss / d W_skip        = Eᵀ x'
    d loss / d b_in          = -(sum over pairs d loss / d pre) W_enc - (sum over rows E) W_skip

The latents of a cross-layer transcoder read one of L layers each: there x' is the part of their layer, W_enc
is [F, D / L], and d loss / d W_dec is cut to the layers that a latent writes to (:mod:`...layer_blocks`).

Legend: R rows of the step, B rows of a part, D model width, O width of the target, F latents, P pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...backends.plain.products import matmul, weighted_sum
from ...pairs import Pairs
from . import products
from .rows import Batch


class AuxiliaryLoss(Protocol):
    """Adds a loss term on a part of the rows, given the error [B, D] of the main reconstruction."""

    def __call__(self, part: Batch, error: Tensor) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """Decoded codes beside the rows that they should give.

    Attributes:
        codes: [B, F].
        error: reconstruction - target, [B, O]; d loss / d reconstruction is ``scale`` * error.
        d_value: d loss / d value at the pairs of ``codes``, [P].
        squared_error: the sum of the squares of ``error``, float64 [].
        has_bias: the decoder's bias (and a skip connection) is part of the reconstruction.
    """

    codes: Pairs
    error: Tensor
    d_value: Tensor
    squared_error: Tensor
    scale: float
    has_bias: bool


def train_selected(batch: Batch, codes: Pairs, auxiliary: Iterable[AuxiliaryLoss] = ()) -> None:
    """Run forward and backward for codes that are the pre-activations of the selected pairs."""
    auxiliary = tuple(auxiliary)
    for rows, part in batch.split():
        part_codes = codes.slice_rows(rows.start, rows.stop)
        found = reconstruct(part, part_codes)
        backpropagate(part, part_codes, found.d_value, found)
        part.record(part_codes, found.squared_error)
        for loss in auxiliary:
            loss(part, found.error)


def reconstruct(
    batch: Batch, codes: Pairs, target: Tensor | None = None, *, weight: float = 1.0, name: str = "mse"
) -> Reconstruction:
    """Add the loss ``weight`` * mean over rows of |decoded codes - target|².

    Args:
        codes: [B, F].
        target: [B, D], for example a residual, reconstructed without the decoder's bias. None takes the
            batch's target and uses the bias.
        name: the name of the loss term in the metrics.

    Returns:
        What :func:`backpropagate` needs to give the decoder its gradient.
    """
    scale = 2.0 * weight / batch.step_rows
    error, d_value, squared_error = products.reconstruct(
        codes,
        batch.parameters["W_dec"],
        batch.target_centered if target is None else target,
        scale,
        batch.shards,
    )
    batch.outcome.add_loss(name, squared_error * (weight / batch.step_rows))
    return Reconstruction(
        codes=codes,
        error=error,
        d_value=d_value,
        squared_error=squared_error,
        scale=scale,
        has_bias=target is None,
    )


def backpropagate(
    batch: Batch,
    codes: Pairs,
    d_pre: Tensor,
    decoded: Reconstruction | None = None,
    *,
    d_bias: Tensor | None = None,
) -> None:
    """Carry d loss / d pre-activation at the pairs [P] into W_enc, b_enc, and b_dec through x - b_dec.

    Args:
        decoded: a reconstruction from the same pairs, whose gradient the decoder and its bias get; None
            leaves the decoder alone, as if it were detached.
        d_bias: the gradient for b_enc [P], if it differs from the one for x W_enc.
    """
    gradients, sum_per_latent = batch.gradients, batch.backend.sum_per_latent
    if decoded is None:
        accumulate_encoder_gradient(batch, codes, d_pre)
        per_latent = sum_per_latent(codes, d_pre)
    else:
        assert decoded.codes.latent is codes.latent, "both are of the same pairs"
        if batch.layers.num_layers == 1:
            inputs = d_pre, batch.x_centered, decoded.error, decoded.scale
            outputs = gradients["W_enc"], gradients["W_dec"]
            per_latent = products.weight_gradients(decoded.codes, *inputs, *outputs, batch.shards)
            add_bias_gradient(batch, decoded)
        else:
            backpropagate_decoder(batch, decoded)
            accumulate_encoder_gradient(batch, codes, d_pre)
            per_latent = sum_per_latent(codes, d_pre)
    add_encoder_bias_gradient(batch, per_latent, None if d_bias is None else sum_per_latent(codes, d_bias))


def add_encoder_bias_gradient(batch: Batch, per_latent: Tensor, d_bias: Tensor | None = None) -> None:
    """Give ``b_enc`` its gradient, ``d_bias`` or else ``per_latent`` [F]; that also reaches ``b_dec``."""
    sums = [batch.outcome.through_encoder, batch.gradients["b_enc"]]
    torch._foreach_add_(sums, [per_latent, per_latent if d_bias is None else d_bias])


def accumulate_encoder_gradient(batch: Batch, codes: Pairs, d_pre: Tensor) -> None:
    """Add the gradient of W_enc at the pairs ``codes``, of whose pre-activations ``d_pre`` [P] is one."""
    layers = batch.layers
    products.accumulate_by_latent(
        layers.by_layer(codes),
        d_pre,
        layers.rows_by_layer(batch.x_centered),
        batch.gradients["W_enc"],
        batch.shards,
    )


def backpropagate_decoder(batch: Batch, decoded: Reconstruction) -> None:
    """Give the decoder and its bias their gradient, if the encoder's comes from other pairs."""
    coefficient = decoded.codes.value * decoded.scale
    products.accumulate_by_latent(
        decoded.codes, coefficient, decoded.error, batch.gradients["W_dec"], batch.shards
    )
    add_bias_gradient(batch, decoded)


def add_bias_gradient(batch: Batch, decoded: Reconstruction) -> None:
    """Give ``b_dec`` and ``W_skip`` their gradients as parts of the reconstruction."""
    if decoded.has_bias:
        add_affine_gradient(batch, decoded.error, decoded.scale)


def add_affine_gradient(batch: Batch, error: Tensor, scale: float = 1.0) -> None:
    """Give ``b_dec`` and ``W_skip`` their gradients; d loss / d reconstruction is scale * error [B, O]."""
    batch.gradients["b_dec"].add_(error.sum(0), alpha=scale)
    if "W_skip" in batch.parameters:
        batch.gradients["W_skip"].add_(matmul(error.T, batch.x_centered), alpha=scale)


def finish_gradients(batch: Batch) -> None:
    """Add the gradients that reach ``b_dec``, or ``b_in``, through x', and drop those of decoders that a
    cross-layer transcoder does not have; call it after all parts.
    """
    gradients, parameters = batch.gradients, batch.parameters
    batch.layers.clear_unwritten(gradients["W_dec"])
    through_encoder = batch.layers.weighted_sum(batch.outcome.through_encoder, parameters["W_enc"])
    gradients["b_in" if "b_in" in parameters else "b_dec"].sub_(through_encoder)
    if "W_skip" in parameters:  # its reconstruction has the gradient of b_dec, summed over the rows
        gradients["b_in"].sub_(weighted_sum(gradients["b_dec"], parameters["W_skip"]))
