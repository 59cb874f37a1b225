"""Codes to rows: the sum of each row's decoder directions, weighted by its code values."""

import torch
from torch import Tensor

from ..pairs import Pairs


def decode(pairs: Pairs, W_dec: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """out[row] = bias + sum over the row's pairs of value * W_dec[latent].

    Args:
        pairs: [B, F].
        W_dec: float32 [F, D].
        bias: [D]; None adds nothing.
        out: [B, D] to write into; None allocates.

    Returns:
        ``out``, float32 [B, D].
    """
    decoded = torch.nn.functional.embedding_bag(
        pairs.latent, W_dec, pairs.row_ptr[:-1], mode="sum", per_sample_weights=pairs.value
    )
    if bias is not None:
        decoded.add_(bias)
    return decoded if out is None else out.copy_(decoded)
