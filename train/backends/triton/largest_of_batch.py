"""BatchTopK and Mutual Choice: the largest pre-activations of a whole batch."""

import torch
from torch import Tensor

from ...pairs import Pairs
from .candidates import candidates, least_of_all, room_for
from .compact import largest_candidates, largest_of_matrix
from .exact import exact_matrix
from .prepare import Factors, factors_of, screening_pays
from .rounding import ScreenRows
from .screen import chunk_for, screen

LARGEST_SHARE = 1 / 8  # of all pairs, as candidates; above it the whole matrix of pre-activations is cheaper


def largest_of_batch(
    x: Tensor, W: Tensor, b: Tensor, total: int, *, rounded_W: ScreenRows | None = None
) -> Pairs:
    """The ``total`` largest pre-activations of all, the lowest (row, latent) first among equals.

    No hint of the threshold is needed: as many chunks as there are pairs wanted are sure to reach the one
    taken.

    Args:
        x: float32 [B, D], centered. W: float32 [F, D]. b: float32 [F].
        rounded_W: :func:`.rounding.round_latents` of ``W``, if it is there already.

    Returns:
        Pairs [B, F], whose values are those of :func:`.exact.exact`, bit for bit.

    Raises:
        NonFiniteError: a pre-activation is NaN, or too large for float32.
    """
    num_rows, num_latents = len(x), len(W)
    if not 0 <= total <= num_rows * num_latents:
        raise ValueError(
            f"total must be from 0 to the number of pairs, {num_rows * num_latents}, got {total}"
        )
    f = factors_of(x, W, b, rounded_W)
    if total == 0:
        row_ptr = torch.zeros(num_rows + 1, dtype=torch.int64, device=x.device)
        none = torch.zeros(0, dtype=torch.int64, device=x.device)
        return Pairs(row_ptr=row_ptr, latent=none, value=x.new_zeros(0), num_latents=num_latents)
    if not screening_pays(x.device, x.shape[1], num_latents, total / num_rows):
        return _of_matrix(f, total)
    found = screen(f.x_rows, f.W_rows, b, chunk=chunk_for(num_latents, total / num_rows))
    least = least_of_all(found, total)
    room = room_for(num_rows, num_latents, total)
    while True:
        some = candidates(found, least, "all", room, x, W)
        pairs = largest_candidates(some, num_rows, num_latents, total)
        limits = f.limits(some.count, values=pairs.value).cpu().tolist()
        f.check(limits)
        if limits[3] <= room:
            return pairs.with_num_positive(int(limits[4]))
        if limits[3] > LARGEST_SHARE * num_rows * num_latents:
            return _of_matrix(f, total)
        room = int(limits[3])


def _of_matrix(f: Factors, total: int) -> Pairs:
    pairs = largest_of_matrix(exact_matrix(f.x, f.W, f.b), total)
    limits = f.limits(values=pairs.value).cpu().tolist()
    f.check(limits)
    return pairs.with_num_positive(int(limits[4]))
