"""The products of a step, computed pair by pair or as matrix products, whichever is faster.

Selected codes are so sparse that pairs are far faster. Under a penalty half of all latents may be active at
the start; from about two fifths on matrix products are faster, on parts small enough for dense matrices (see
:mod:`.parts_above`). Legend: B rows, D model width, F latents, P pairs.
"""

from torch import Tensor

from ...backends import composed
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


def reconstruct(codes: Pairs, W_dec: Tensor, target: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`...backends.protocol.Backend.reconstruct`."""
    if prefers_matrices(codes):
        return composed.reconstruct(_decode, _sddmm, codes, W_dec, target, scale)
    return backend_of(W_dec).reconstruct(codes, W_dec, target, scale)


def weight_gradients(
    codes: Pairs,
    d_pre: Tensor,
    x_centered: Tensor,
    error: Tensor,
    scale: float,
    W_enc_grad: Tensor,
    W_dec_grad: Tensor,
) -> Tensor:
    """See :meth:`...backends.protocol.Backend.weight_gradients`."""
    backend, rest = backend_of(error), (codes, d_pre, x_centered, error, scale, W_enc_grad, W_dec_grad)
    if prefers_matrices(codes) or x_centered.shape[1] != error.shape[1]:  # fused kernels take one width
        return composed.weight_gradients(accumulate_by_latent, backend.sum_per_latent, *rest)
    return backend.weight_gradients(*rest)


def accumulate_by_latent(codes: Pairs, coefficient: Tensor, source: Tensor, out: Tensor) -> None:
    """out[latent] += sum over the latent's pairs of coefficient * source[row]; [P], [B, D] and [F, D]."""
    if not prefers_matrices(codes):
        backend_of(source).accumulate_by_latent(codes, coefficient, source, out)
    else:
        matmul(codes.with_value(coefficient).to_dense().T, source, out, add=True)


def _decode(codes: Pairs, W_dec: Tensor) -> Tensor:
    return matmul(codes.to_dense(), W_dec)


def _sddmm(codes: Pairs, g: Tensor, W_dec: Tensor) -> Tensor:
    return matmul(g, W_dec.T)[codes.rows(), codes.latent]
