"""Gradients by latent: the transpose of a code matrix, times dense rows.

Legend: B rows, D model width, F latents, P pairs.
"""

from typing import Any

import torch
from torch import Tensor

from ..pairs import Pairs
from .compile import compiled
from .decode import add_scaled_rows
from .dispatch import use_compiled
from .threads import even_part, run_parts
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
    scale = coefficient[order.pair]
    arrays = [t.detach().numpy() for t in (order.latent_ptr, order.row, scale, source, out)]
    run_parts(
        lambda first, last: _add_to_latents(*arrays, first, last), out.shape[0], even_part(out.shape[0])
    )


@compiled
def _add_to_latents(
    latent_ptr: Any, row: Any, scale: Any, source: Any, out: Any, first: Any, last: Any
) -> None:
    for latent in range(first, last):
        add_scaled_rows(out[latent], row, scale, source, latent_ptr[latent], latent_ptr[latent + 1])
