"""Sparse linear algebra on pairs: one operation per file, each the same on every device."""

from .accumulate import accumulate_by_latent
from .decode import decode
from .encode import Blocks, EncoderBlocks, encode_blocks
from .matmul import matmul, total, weighted_sum
from .sddmm import sddmm

__all__ = [
    "Blocks",
    "EncoderBlocks",
    "accumulate_by_latent",
    "decode",
    "encode_blocks",
    "matmul",
    "sddmm",
    "total",
    "weighted_sum",
]
