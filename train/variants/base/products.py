"""The three products of a step, by pairs or by matrices: whichever is faster for as many pairs as there are.

Codes that a selection made are so sparse that pairs win by far. A penalty lets half of all latents be
active at the start; from about two fifths of them on matrix products win, on parts small enough for a matrix
(see :mod:`.parts_above`). Legend: B rows, D model width, F latents, P pairs.
"""

from torch import Tensor

from ...backends.choice import backend_of
from ...backends.plain.products import matmul
from ...backends.sources import block_bytes
from ...pairs import Pairs

DENSE_SHARE = 0.4  # of all pairs: where benchmarks/products.py has both take the same time
DENSE_BLOCKS = 2  # blocks of pre-activations that a matrix may be as large as, whatever its share


def prefers_matrices(codes: Pairs) -> bool:
    """Whether codes [B, F] are many enough, and B * F is small enough."""
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
