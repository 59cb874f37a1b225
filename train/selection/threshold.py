"""Inference of the batch-wide rules, and JumpReLU: pre-activations above a threshold.

Legend: B rows, F latents.
"""

import torch
from torch import Tensor

from ..kernels.encode import Blocks
from ..pairs import Pairs
from .collect import collect
from .pieces import assemble


def select_threshold(blocks: Blocks, num_rows: int, num_latents: int, threshold: Tensor | float) -> Pairs:
    """Pre-activations strictly above ``threshold``, a number or float32 [F] (infinity: never).

    From :func:`..kernels.encode_blocks`, pre-activations are what ``sddmm(pairs, x, W_enc) + b_enc`` gives.

    Raises:
        NonFiniteError: a pre-activation is NaN.
    """
    thresholds = torch.as_tensor(threshold, dtype=torch.float32).expand(num_latents).contiguous()
    return assemble(collect(blocks, thresholds, strict=True), num_latents)
