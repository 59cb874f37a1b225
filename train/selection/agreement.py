"""How processes that share the latents of an SAE agree on what is selected; alone, they ask the backend.

Each process selects candidates among its own latents. The processes exchange the candidates' values, and each
finds out which of its own are among the best of all. Lower ranks hold lower latents, so ties go to them.

Legend: B rows, F latents, k pairs per row, P pairs.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..backends.guessing import SAMPLE_MARGINS, next_guess, sample
from ..backends.protocol import Backend
from ..backends.sources import Source
from ..latent_shards import LatentShards
from ..pairs import Pairs


def largest_per_row(backend: Backend, source: Source, k: int, shards: LatentShards) -> Pairs:
    """See :meth:`..backends.protocol.Backend.largest_per_row`."""
    if shards.is_whole:
        return backend.largest_per_row(source, k)
    own = min(k, source.num_latents)
    candidates = shards.agreed(lambda: backend.largest_per_row(source, own) if own else nothing(source))
    return keep_largest_per_row(candidates, k, shards)


def keep_largest_per_row(pairs: Pairs, k: int, shards: LatentShards) -> Pairs:
    """The ``k`` largest of each row's pairs, of all processes; ties go to the lowest latent.

    Every row must have ``k`` pairs or more, in all processes together.
    """
    count = pairs.row_ptr.diff()
    room = shards.group.max(count.max() if len(count) else count.new_zeros(()))
    rows = pairs.rows()
    place = torch.arange(len(pairs), device=rows.device) - pairs.row_ptr[rows]
    values = pairs.value.new_full((pairs.num_rows, int(room)), -torch.inf)
    values[rows, place] = pairs.value + 0.0  # no -0.0, which would differ from 0.0
    every = torch.cat(shards.group.gather(values), dim=1)  # the columns are in the order of the latents
    first = shards.group.rank * values.shape[1]
    least = every.topk(k, dim=1, sorted=True).values[:, -1:]
    above, equal = every > least, every == least
    left = k - above.sum(1, keepdim=True)
    own = slice(first, first + values.shape[1])
    ties = equal.cumsum(1)[:, own] <= left
    chosen = above[:, own] | (equal[:, own] & ties)
    return pairs.keep(chosen[rows, place])


def largest_of_batch(
    backend: Backend, source: Source, total: int, hint: Tensor | None, shards: LatentShards
) -> tuple[Pairs, Tensor | None]:
    """See :meth:`..backends.protocol.Backend.largest_of_batch`; the hint has the same bits as there."""
    if shards.is_whole:
        return backend.largest_of_batch(source, total, hint)
    if total == 0:
        return shards.agreed(lambda: _own_largest(backend, source, 0)), None
    for guess in _guesses(source, total, hint, shards):
        each = torch.full((source.num_latents,), guess, device=source.device)
        candidates = shards.agreed(partial(_above, backend, source, each))
        if shards.add_up(len(candidates)) >= total:
            break
    else:
        candidates = shards.agreed(lambda: _own_largest(backend, source, total))
    every = torch.cat(shards.group.gather_rows(candidates.value + 0.0))
    largest = every.topk(total, sorted=False).values
    least = largest.min()
    left = total - int((every > least).sum())
    chosen = candidates.value > least
    equal = candidates.value == least
    if int((every == least).sum()) > left:
        equal &= _rank_of_ties(candidates, equal, shards) < left
    return candidates.keep(chosen | equal), torch.tensor(next_guess(_kth_largest, largest))


def _guesses(source: Source, total: int, hint: Tensor | None, shards: LatentShards) -> Iterator[float]:
    """Yield thresholds that enough pairs of all processes may exceed: see :mod:`..backends.guessing`."""
    last = torch.inf if hint is None or not bool(hint.isfinite()) else float(hint)
    values = sample(source, shards.group.size)[0].flatten()
    taken, latents = shards.sum(torch.tensor([len(values), source.num_latents])).tolist()
    share = taken / (source.num_rows * latents)
    for margin in SAMPLE_MARGINS:
        rank = int(margin * total * share) + 1
        best = values.topk(min(rank, len(values))).values
        every = torch.cat(shards.group.gather_rows(best))
        if rank <= len(every):
            yield min(last, _kth_largest(every, rank))


def _above(backend: Backend, source: Source, threshold: Tensor) -> Pairs:
    return backend.above(source, threshold) if source.num_latents else nothing(source)


def _own_largest(backend: Backend, source: Source, total: int) -> Pairs:
    """The largest pairs of this process; those of all processes are among them."""
    most = source.num_rows * source.num_latents
    return backend.largest_of_batch(source, min(total, most), None)[0] if most else nothing(source)


def _kth_largest(values: Tensor, k: int) -> float:
    return float(values.topk(k).values[-1])


def _rank_of_ties(pairs: Pairs, equal: Tensor, shards: LatentShards) -> Tensor:
    """The 0-based place of each ``equal`` pair (bool [P]) among those of all, by (row, latent): int64 [P]."""
    rows = pairs.rows()
    each = torch.stack(shards.group.gather(torch.bincount(rows[equal], minlength=pairs.num_rows)), dim=1)
    before = (each.flatten().cumsum(0) - each.flatten()).view_as(each)[:, shards.group.rank]
    own = each[:, shards.group.rank]
    in_row = equal.cumsum(0) - 1 - (own.cumsum(0) - own)[rows]
    return before[rows] + in_row


def nothing(source: Source) -> Pairs:
    """No pair of the rows of ``source``."""
    none = torch.zeros(0, dtype=torch.int64, device=source.device)
    row_ptr = torch.zeros(source.num_rows + 1, dtype=torch.int64, device=source.device)
    return Pairs(
        row_ptr=row_ptr,
        latent=none,
        value=torch.zeros(0, device=source.device),
        num_latents=source.num_latents,
    )
