"""Gradients by latent: the transpose of a code matrix, times dense rows.

Legend: B rows, D model width, F latents, P pairs.
"""

import torch
from torch import Tensor

from ..pairs import Pairs
from .decode import add_rows_in_tiles
from .dispatch import use_compiled
from .tiles import latent_cuts
from .transpose import by_latent


def accumulate_by_latent(pairs: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
    """out[latent] += sum over the latent's pairs of coefficient * source[row], rows ascending.

    The same bits whatever the number of threads: every row of ``out`` is added up by one of them.

    Args:
        pairs: [B, F]; their values are not looked at.
        coefficient: float32 [P].
        source: float32 [B, D].
        out: float32 [F, D], added to.
    """
    order = by_latent(pairs)
    if not use_compiled(coefficient, source, out):
        out += torch.nn.functional.embedding_bag(
            order.row, source, order.latent_ptr[:-1], mode="sum", per_sample_weights=coefficient[order.pair]
        )
        return
    scale = coefficient.index_select(0, order.pair)
    row, *rest = (t.detach().numpy() for t in (order.row, scale, source, out))
    add_rows_in_tiles(latent_cuts(pairs, rest[1].strides[0]), row, *rest)
