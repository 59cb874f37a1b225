"""Threshold kinds: all pre-activations above a number, or above their latent's own."""

import torch
from torch import Tensor

from ...pairs import Pairs
from .candidates import candidates
from .compact import compact_candidates, compact_matrix
from .exact import exact_matrix
from .largest_of_batch import LARGEST_SHARE
from .prepare import factors_of, screening_pays
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
    if screening_pays(x.device, x.shape[1], num_latents, min(EXPECTED, num_latents / 64)):
        found = screen(f.x_rows, f.W_rows, b)
        most = num_rows * num_latents
        room = min(ROOM_PER_ROW * num_rows if room is None else room, most)
        while room <= max(LARGEST_SHARE * most, ROOM_PER_ROW):
            some = candidates(found, limit, limit_of, room, x, W)
            there = torch.arange(some.room, device=x.device) < some.count
            bar = limit[some.column.long().where(there, 0)] if threshold.dim() else limit
            marked = (some.value > bar if strict else some.value >= bar) & there
            pairs = compact_candidates(some, marked, num_latents, room)
            limits = f.limits(some.count, kept=pairs.row_ptr[-1:]).cpu().tolist()
            f.check(limits)
            if limits[3] <= room:
                return _shortened(pairs, int(limits[4]))
            room = int(limits[3])
    f.check(f.limits().cpu().tolist())
    values = exact_matrix(x, W, b)
    marked = values > limit if strict else values >= limit
    kept = int(marked.sum())
    return compact_matrix(values, marked.view(-1), kept)


def _shortened(pairs: Pairs, count: int) -> Pairs:
    return Pairs(
        row_ptr=pairs.row_ptr,
        latent=pairs.latent[:count].clone(),
        value=pairs.value[:count].clone(),
        num_latents=pairs.num_latents,
    )
