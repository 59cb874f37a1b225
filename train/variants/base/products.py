"""The products of a step, computed pair by pair or as matrix products, whichever is faster.

Selected codes are so sparse that pairs are far faster. Under a penalty half of all latents may be active at
the start; from about two fifths on matrix products are faster, on parts small enough for dense matrices (see
:mod:`.parts_above`). Legend: B rows, D model width, F latents, P pairs.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ...backends import composed
from ...backends.choice import backend_of
from ...backends.plain.products import matmul, part_of
from ...backends.sources import block_bytes
from ...latent_shards import LatentShards
from ...pairs import Pairs

DENSE_SHARE = 0.4  # of all pairs: here both ways take the same time in benchmarks/products.py
DENSE_BLOCKS = 2  # the largest dense matrix, in blocks of pre-activations


def prefers_matrices(codes: Pairs, shards: LatentShards | None = None) -> bool:
    """Whether the codes [B, F] are dense enough for matrix products, and B * F is small enough.

    The codes of all processes decide, so that all do the same.
    """
    shards = shards or LatentShards.divide(codes.num_latents)
    entries = codes.num_rows * shards.total
    if 4 * entries > DENSE_BLOCKS * block_bytes(codes.latent.device):
        return False
    return shards.add_up(len(codes)) > DENSE_SHARE * entries


def reconstruct(
    codes: Pairs, W_dec: Tensor, target: Tensor, scale: float, shards: LatentShards | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`...backends.protocol.Backend.reconstruct`; the codes of all processes are decoded."""
    shards = shards or LatentShards.divide(codes.num_latents)
    if prefers_matrices(codes, shards):
        decode, sddmm = partial(_decode, shards=shards), partial(_sddmm, columns=shards.unit)
        return composed.reconstruct(decode, sddmm, codes, W_dec, target, scale)
    backend = backend_of(W_dec)
    if shards.is_whole:
        return backend.reconstruct(codes, W_dec, target, scale)
    return composed.reconstruct(shards.decode, backend.sddmm, codes, W_dec, target, scale)


def reconstruct_nested(
    rings: Pairs,
    W_dec: Tensor,
    target: Tensor,
    weights: Sequence[float],
    scale: float,
    shards: LatentShards | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :meth:`...backends.protocol.Backend.reconstruct_nested`; the codes of all processes are decoded."""
    backend, rest = backend_of(W_dec), (rings, W_dec, target, weights, scale)
    if shards is None or shards.is_whole:
        return backend.reconstruct_nested(*rest)
    return composed.reconstruct_nested(shards.decode, backend.sddmm, *rest)


def weight_gradients(
    codes: Pairs,
    d_pre: Tensor,
    x_centered: Tensor,
    error: Tensor,
    scale: float,
    W_enc_grad: Tensor,
    W_dec_grad: Tensor,
    shards: LatentShards | None = None,
) -> Tensor:
    """See :meth:`...backends.protocol.Backend.weight_gradients`."""
    backend, rest = backend_of(error), (codes, d_pre, x_centered, error, scale, W_enc_grad, W_dec_grad)
    one_width = x_centered.shape[1] == error.shape[1]  # which the fused kernels ask for
    if prefers_matrices(codes.join_rows(len(x_centered)), shards) or not one_width:
        accumulate = partial(accumulate_by_latent, shards=shards)
        return composed.weight_gradients(accumulate, backend.sum_per_latent, *rest)
    return backend.weight_gradients(*rest)


def accumulate_by_latent(
    codes: Pairs,
    coefficient: Tensor,
    source: Tensor,
    out: Tensor,
    shards: LatentShards | None = None,
) -> None:
    """out[latent] += sum over the latent's pairs of coefficient * source[row]; [P], [B, D] and [F, D]."""
    shards = shards or LatentShards.divide(codes.num_latents)
    if not prefers_matrices(codes, shards):
        backend_of(source).accumulate_by_latent(codes, coefficient, source, out)
    else:
        dense = codes.with_value(coefficient).to_dense()
        matmul(dense.T, source, out, add=True, part_rows=shards.unit)


def _decode(codes: Pairs, W_dec: Tensor, shards: LatentShards) -> Tensor:
    dense, part_rows = codes.to_dense(), part_of(codes.num_rows)
    sums = W_dec.new_empty(codes.num_rows, W_dec.shape[1])

    def add(rows: slice) -> None:
        more = shards.first > 0
        matmul(dense[rows], W_dec, sums[rows], add=more, part_rows=part_rows, terms=shards.unit)

    shards.chain(sums, add, part_rows)
    return sums


def _sddmm(codes: Pairs, g: Tensor, W_dec: Tensor, columns: int) -> Tensor:
    return matmul(g, W_dec.T, columns=columns)[codes.rows(), codes.latent]
