"""The three products of a step, computed pair by pair or as matrix products, whichever is faster.

Selected codes are so sparse that pairs are far faster. Under a penalty half of all latents may be active at
the start; from about two fifths on matrix products are faster, on parts small enough for dense matrices (see
:mod:`.parts_above`). Legend: B rows, D model width, F latents, P pairs.
"""

from torch import Tensor

from ...backends.choice import backend_of
from ...backends.plain.products import matmul
from ...backends.sources import block_bytes
from ...pairs import Pairs

DENSE_SHARE = 0.4  # of all pairs: here both ways take the same time in benchmarks/products.py
DENSE_BLOCKS = 2  # the largest dense matrix, in blocks of pre-activations


def prefers_matrices(codes: Pairs) -> bool:
    """Whether the codes [B, F] are dense enough for matrix products, and B * F is small enough."""
    entries = codes.num_rows * codes.num_latents
    return len(codes) > DENSE_SHARE * entries and 4 * entries <= DENSE_BLOCKS * block_bytes(
        codes.latent.device
    )


def decode(codes: Pairs, W_dec: Tensor) -> Tensor:
    """codes @ W_dec, [B, D]."""
    if not prefers_matrices(codes):
        return backend_of(W_dec).decode(codes, W_dec)
    return matmul(codes.to_dense(), W_dec)


def sddmm(codes: Pairs, g: Tensor, W_dec: Tensor) -> Tensor:
    """<g[row], W_dec[latent]> of every pair, [P]; ``g`` is [B, D]."""
    if not prefers_matrices(codes):
        return backend_of(W_dec).sddmm(codes, g, W_dec)
    return matmul(g, W_dec.T)[codes.rows(), codes.latent]


def accumulate_by_latent(codes: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
    """out[latent] += sum over the latent's pairs of coefficient * source[row]; [P], [B, D] and [F, D]."""
    if not prefers_matrices(codes):
        backend_of(source).accumulate_by_latent(codes, coefficient, source, out)
    else:
        matmul(codes.with_value(coefficient).to_dense().T, source, out, add=True)
