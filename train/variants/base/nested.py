"""Nested sets of codes that all reconstruct the same rows: prefixes of a dictionary, or k and 4 k latents.

Set g has the codes of set g - 1 and more; ring g holds what it has more. With e_g the error of set g, w_g its
weight and s_h = sum over g >= h of w_g e_g, the loss is sum over g of w_g |e_g|² / R. The gradients for the
codes of ring h are those of :mod:`.gradients` with s_h in the place of e: d loss / d code =
2 / R <s_h, W_dec>.

Legend: R rows of the step, B rows of a part, D model width, F latents, G sets, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...pairs import Pairs
from . import products
from .gradients import add_affine_gradient, add_encoder_bias_gradient, backpropagate
from .rows import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Rings:
    """Codes by rings.

    Attributes:
        pairs: [B * G, F]; row b * G + h has the codes of row b in ring h.
        order: the place of each pair among the codes, int64 [P]; None if it is the same.
    """

    pairs: Pairs
    order: Tensor | None

    @classmethod
    def divide(cls, codes: Pairs, ring: Tensor, num_rings: int, *, ascending: bool) -> "Rings":
        """Divide ``codes`` [B, F] by the ring of each, int64 [P], which may be ``ascending`` in every row."""
        row, latent, value, order = codes.rows() * num_rings + ring, codes.latent, codes.value, None
        if not ascending:
            row, order = row.sort(stable=True)
            latent, value = latent[order], value[order]
        every_row = torch.arange(codes.num_rows * num_rings + 1, device=row.device)
        pairs = Pairs(
            row_ptr=torch.searchsorted(row, every_row),
            latent=latent,
            value=value,
            num_latents=codes.num_latents,
        )
        return cls(pairs=pairs, order=order)


@dataclass(frozen=True, kw_only=True, eq=False)
class NestedErrors:
    """What :func:`train_nested` has found.

    Attributes:
        last: the error of the last set, [B, D].
        slopes: 2 / R s_h, [B, G, D].
        squared: the sum of the squares of each error, float64 [G].
    """

    last: Tensor
    slopes: Tensor
    squared: Tensor


def train_nested(
    part: Batch, codes: Pairs, rings: Rings, weights: Sequence[float], names: Sequence[str]
) -> NestedErrors:
    """Add the loss of every set of ``codes`` under its name, and all gradients."""
    W_dec, gradients, pairs, R = part.parameters["W_dec"], part.gradients, rings.pairs, part.step_rows
    last, slopes, d_value, squared = products.reconstruct_nested(
        pairs, W_dec, part.target_centered, weights, 2.0 / R, part.shards
    )
    for name, weight, squared_error in zip(names, weights, squared, strict=True):
        part.outcome.add_loss(name, squared_error * (weight / R))
    if part.layers.num_layers == 1:
        outputs = gradients["W_enc"], gradients["W_dec"]
        per_latent = products.weight_gradients(
            pairs, d_value, part.x_centered, slopes, 1.0, *outputs, part.shards
        )
        add_encoder_bias_gradient(part, per_latent)
    else:
        part.backend.accumulate_by_latent(pairs, pairs.value, slopes, gradients["W_dec"])
        if rings.order is not None:
            d_value = torch.empty_like(d_value).index_copy_(0, rings.order, d_value)
        backpropagate(part, codes, d_value)
    by_ring = slopes.view(part.num_rows, len(weights), slopes.shape[1])
    add_affine_gradient(part, by_ring[:, 0])
    return NestedErrors(last=last, slopes=by_ring, squared=squared)
