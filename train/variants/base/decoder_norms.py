"""The norms of the decoder's rows, by which penalties weight codes.

A crosscoder's row has a part for each hook, and codes are weighted by the sum of the norms of the parts, so
that a latent pays for every hook that it writes to (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer
Features and Model Diffing"). Legend: D model width, F latents.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ...backends.plain.adam import TINY
from .rows import Batch


@dataclass(frozen=True, eq=False)
class DecoderNorms:
    """The norm of every row of W_dec, [F], which is the sum of the norms of its ``parts``.

    Attributes:
        parts: the columns of each hook with the norms of the rows there, [F].
    """

    total: Tensor
    parts: tuple[tuple[slice, Tensor], ...]

    def add_gradient(self, batch: Batch, d_norm: Tensor, weight: float = 1.0) -> None:
        """Give W_dec its gradient, where d loss / d norm is weight * ``d_norm`` [F]: d|w| / dw = w / |w|."""
        W_dec, gradient = batch.parameters["W_dec"], batch.gradients["W_dec"]
        for columns, norms in self.parts:
            scale = d_norm / norms if weight == 1 else d_norm * (weight / norms)
            gradient[:, columns].addcmul_(scale[:, None], W_dec[:, columns])


def decoder_norms(batch: Batch) -> DecoderNorms:
    """The norms of the decoder's rows at this step; a row of zeros counts as very small."""
    W_dec = batch.parameters["W_dec"]
    if not batch.hook_widths:
        norms = torch.linalg.vector_norm(W_dec, dim=1).clamp_min_(TINY)
        return DecoderNorms(norms, ((slice(None), norms),))
    stops = accumulate(batch.hook_widths)
    columns = [slice(stop - width, stop) for stop, width in zip(stops, batch.hook_widths, strict=True)]
    parts = tuple((c, torch.linalg.vector_norm(W_dec[:, c], dim=1).clamp_min_(TINY)) for c in columns)
    return DecoderNorms(torch.stack([norms for _, norms in parts]).sum(0), parts)
