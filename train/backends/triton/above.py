"""Threshold kinds: all pre-activations above a number, or above their latent's own."""

import torch
from torch import Tensor

from ...pairs import Pairs
from ..block_pairs import BlockPairs, assemble
from .candidates import candidates
from .compact import compact_candidates, compact_matrix
from .exact import exact_matrix
from .largest_of_batch import LARGEST_SHARE
from .prepare import Factors, factors_of, matrix_rows, screening_pays
from .rounding import ScreenRows
from .screen import screen

ROOM_PER_ROW = 256  # candidates, at the first try
EXPECTED = 32.0  # pairs of a row, when it is decided whether to screen


def above(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    threshold: Tensor,
    *,
    strict: bool = True,
    room: int | None = None,
    rounded_W: ScreenRows | None = None,
) -> Pairs:
    """All pairs whose pre-activation is above the threshold, or with ``strict=False`` reaches it.

    Args:
        x: float32 [B, D], centered. W: float32 [F, D]. b: float32 [F].
        threshold: float32 [] or [F]; infinity and NaN admit nothing.
        room: how many candidates to expect; if there are more, the selection is done again.
        rounded_W: :func:`.rounding.round_latents` of ``W``, if it is there already.

    Returns:
        Pairs [B, F], whose values are those of :func:`.exact.exact`, bit for bit.

    Raises:
        NonFiniteError: a pre-activation is NaN, or too large for float32.
    """
    num_rows, num_latents = len(x), len(W)
    if threshold.shape not in ((), (num_latents,)) or threshold.dtype != torch.float32:
        raise ValueError(
            f"threshold must be float32 [] or [{num_latents}], got {threshold.dtype} {threshold.shape}"
        )
    limit_of = "column" if threshold.dim() else "all"
    limit = threshold.reshape(-1).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    f = factors_of(x, W, b, rounded_W)
    if num_rows == 0 or num_latents == 0:
        row_ptr = torch.zeros(num_rows + 1, dtype=torch.int64, device=x.device)
        none = torch.zeros(0, dtype=torch.int64, device=x.device)
        return Pairs(row_ptr=row_ptr, latent=none, value=x.new_zeros(0), num_latents=num_latents)
    chosen = None
    if screening_pays(x.device, x.shape[1], num_latents, min(EXPECTED, num_latents / 64)):
        room = ROOM_PER_ROW * num_rows if room is None else room
        chosen = _of_candidates(f, limit, limit_of, strict, room)
    return _of_matrix(f, limit, strict) if chosen is None else chosen


def _of_candidates(f: Factors, limit: Tensor, limit_of: str, strict: bool, room: int) -> Pairs | None:
    """The pairs among the candidates; None where these are so many that the whole matrix is cheaper."""
    num_latents, most = len(f.W), len(f.x) * len(f.W)
    found, room = screen(f.x_rows, f.W_rows, f.b), min(room, most)
    while room <= max(LARGEST_SHARE * most, ROOM_PER_ROW):
        some = candidates(found, limit, limit_of, room, f.x, f.W)
        there = torch.arange(some.room, device=limit.device) < some.count
        bar = limit if limit_of == "all" else limit[some.column.long().where(there, 0)]
        marked = (some.value > bar if strict else some.value >= bar) & there
        pairs = compact_candidates(some, marked, num_latents, room)
        limits = f.limits(some.count, kept=pairs.row_ptr[-1:]).cpu().tolist()
        f.check(limits)
        if limits[3] <= room:
            return _shortened(pairs, int(limits[4]))
        room = int(limits[3])
    return None


def _of_matrix(f: Factors, limit: Tensor, strict: bool) -> Pairs:
    """The pairs among all pre-activations, which are made block by block."""
    f.check(f.limits().cpu().tolist())
    size, blocks = matrix_rows(len(f.W), limit.device), []
    for first in range(0, len(f.x), size):
        values = exact_matrix(f.x[first : first + size], f.W, f.b)
        marked = values > limit if strict else values >= limit
        pairs = compact_matrix(values, marked.view(-1), int(marked.sum()))
        if len(values) == len(f.x):
            return pairs
        blocks.append(BlockPairs(first, pairs.row_ptr.diff(), pairs.latent, pairs.value))
    return assemble(blocks, len(f.W), limit.device)


def _shortened(pairs: Pairs, count: int) -> Pairs:
    return Pairs(
        row_ptr=pairs.row_ptr,
        latent=pairs.latent[:count].clone(),
        value=pairs.value[:count].clone(),
        num_latents=pairs.num_latents,
    )
