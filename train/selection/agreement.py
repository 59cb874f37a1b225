"""How processes that share latents or rows of a batch agree on what is selected; alone, they ask the backend.

Each process selects candidates among its own pairs. The processes exchange the candidates' values, and each
finds out which of its own are among the best of all. Lower ranks hold lower latents, or lower rows, so ties
go to them.

Legend: B rows, F latents, k pairs per row, P pairs.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ...distributed.group import ALONE, Group
from ..backends.guessing import SAMPLE_MARGINS, next_guess, sample
from ..backends.plain.products import by_latent
from ..backends.protocol import Selections
from ..backends.sources import AnySource, Encoder, block_rows
from ..latent_shards import LatentShards, agreed
from ..pairs import Pairs

LATENTS_PER_LEADER = 256  # of a process; with fewer, the maxima of chunks are too coarse to find leaders
CANDIDATES = 1 << 20  # of all processes, compared at a time by largest_per_latent: about 80 MB


@dataclass(frozen=True)
class Sharers:
    """The processes that select together: each has some latents of some rows.

    Attributes:
        shards: the latents of the processes that have the same rows as this one.
        row_group: the processes that have the same latents as this one; lower ranks have lower rows.
    """

    shards: LatentShards
    row_group: Group = ALONE

    @property
    def is_alone(self) -> bool:
        return self.shards.is_whole and self.row_group.size == 1

    def add_up(self, number: int) -> int:
        """The sum of a number that each process has."""
        return self.row_group.add_up(self.shards.add_up(number))

    def gather_rows(self, values: Tensor) -> Tensor:
        """The values [n] of all processes as one tensor; n may differ."""
        same_rows = torch.cat(self.shards.group.gather_rows(values))
        return torch.cat(self.row_group.gather_rows(same_rows))

    def agreed(self, select: Callable[[], Pairs]) -> Pairs:
        """The pairs of ``select``, which succeeds in all processes or raises NonFiniteError in all."""
        return agreed(self.row_group, partial(self.shards.agreed, select))


def largest_per_row(
    backend: Selections, source: AnySource, k: int, shards: LatentShards, all_latents: bool = True
) -> Pairs:
    """See :meth:`..backends.protocol.Backend.largest_per_row`.

    ``all_latents``: the latents of the source are those that ``shards`` divides, not some of them.
    """
    if shards.is_whole:
        return backend.largest_per_row(source, k)
    own = min(k, source.num_latents)
    fewest, most = shards.fewest_and_most
    num_leaders = -(-k // shards.group.size)
    search = backend.search_rows if all_latents and fewest >= LATENTS_PER_LEADER * num_leaders else None
    if search is not None and isinstance(source, Encoder):
        same_pieces = replace(source, block_rows=block_rows(most, source.device))
        with ExitStack() as stack:
            find = shards.agreed(lambda: stack.enter_context(search(same_pieces, k, num_leaders)))
            candidates = find(shards.group.least)
    else:
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
    least = every.topk(k, dim=1, sorted=False).values.min(1, keepdim=True).values
    above, equal = every > least, every == least
    left = k - above.sum(1, keepdim=True)
    own = slice(first, first + values.shape[1])
    ties = equal.cumsum(1, dtype=torch.int32)[:, own] <= left
    chosen = above[:, own] | (equal[:, own] & ties)
    return pairs.keep(chosen[rows, place])


def largest_of_batch(
    backend: Selections, source: AnySource, total: int, hint: Tensor | None, sharers: Sharers
) -> tuple[Pairs, Tensor | None]:
    """See :meth:`..backends.protocol.Backend.largest_of_batch`; the hint has the same bits as there."""
    if sharers.is_alone:
        return backend.largest_of_batch(source, total, hint)
    if total == 0:
        return sharers.agreed(lambda: _own_largest(backend, source, 0)), None
    for guess in _guesses(source, total, hint, sharers):
        each = torch.full((source.num_latents,), guess, device=source.device)
        candidates = sharers.agreed(partial(above, backend, source, each))
        if sharers.add_up(len(candidates)) >= total:
            break
    else:
        candidates = sharers.agreed(lambda: _own_largest(backend, source, total))
    every = sharers.gather_rows(candidates.value + 0.0)
    largest = every.topk(total, sorted=False).values
    least = largest.min()
    left = total - int((every > least).sum())
    chosen = candidates.value > least
    equal = candidates.value == least
    if int((every == least).sum()) > left:
        equal &= _rank_of_ties(candidates, equal, sharers) < left
    return candidates.keep(chosen | equal), torch.tensor(next_guess(_kth_largest, largest))


def largest_per_latent(backend: Selections, source: AnySource, counts: Tensor, sharers: Sharers) -> Pairs:
    """See :meth:`..backends.protocol.Backend.largest_per_latent`; ``counts`` are of the rows of all."""
    some = bool(source.num_rows and source.num_latents)
    own = counts.clamp(max=source.num_rows)
    candidates = sharers.agreed(lambda: backend.largest_per_latent(source, own) if some else nothing(source))
    return keep_largest_per_latent(candidates, counts, sharers.row_group)


def keep_largest_per_latent(pairs: Pairs, counts: Tensor, row_group: Group) -> Pairs:
    """The ``counts[i]`` largest pairs of latent i, of all processes; ties go to the lowest row.

    Some latents are compared at a time, so that no process holds more than its own candidates and
    :data:`CANDIDATES` of all, or those of one latent.
    """
    if row_group.size == 1:
        return pairs
    order = by_latent(pairs)
    values = pairs.value[order.pair] + 0.0  # by latents, then rows; no -0.0, which would differ from 0.0
    lengths = torch.stack(row_group.gather(order.latent_ptr.diff()))
    block = lengths.sum(0).cumsum(0).sub_(1).clamp_(min=0).div_(CANDIDATES, rounding_mode="floor")
    stops = [*(block.diff().nonzero().flatten() + 1).tolist(), len(block)]
    chosen = torch.zeros(len(pairs), dtype=torch.bool, device=values.device)
    for first, last in pairwise([0, *stops]):
        own = slice(int(order.latent_ptr[first]), int(order.latent_ptr[last]))
        every = row_group.gather_rows(values[own])
        among = _largest_of_each(torch.cat(every), lengths[:, first:last], counts[first:last])
        start = sum(map(len, every[: row_group.rank]))
        chosen[own] = among[start : start + own.stop - own.start]
        del every, among  # before the next ones come, or the pairs are copied
    del values
    return pairs.keep(torch.empty_like(chosen).index_copy_(0, order.pair, chosen))


def _largest_of_each(values: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
    """A mask of the ``counts[i]`` largest values of latent i; ties go to the first: bool [n].

    ``values`` [n] are those of the first process by latents, then those of the next; a process has
    ``lengths`` (int64 [processes, latents]) of each latent.
    """
    numbers = torch.arange(lengths.shape[1], device=values.device).expand_as(lengths)
    latent = numbers.flatten().repeat_interleave(lengths.flatten(), output_size=len(values))
    by_value = values.sort(descending=True, stable=True).indices
    latents, places = latent[by_value].sort(stable=True)
    every = lengths.sum(0)
    place_in_latent = torch.arange(len(values), device=values.device) - (every.cumsum(0) - every)[latents]
    mask = torch.empty(len(values), dtype=torch.bool, device=values.device)
    mask[by_value[places]] = place_in_latent < counts[latents]
    return mask


def _guesses(source: AnySource, total: int, hint: Tensor | None, sharers: Sharers) -> Iterator[float]:
    """Yield thresholds that enough pairs of all processes may exceed: see :mod:`..backends.guessing`."""
    last = torch.inf if hint is None or not bool(hint.isfinite()) else float(hint)
    values = torch.empty(0, device=source.device)
    if source.num_rows:
        values = sample(source, sharers.shards.group.size)[0].flatten()
    own = torch.tensor([len(values), source.num_rows * source.num_latents])
    taken, pairs = sharers.row_group.sum(sharers.shards.sum(own)).tolist()
    share = taken / pairs
    for margin in SAMPLE_MARGINS:
        rank = int(margin * total * share) + 1
        best = values.topk(min(rank, len(values))).values
        every = sharers.gather_rows(best)
        if rank <= len(every):
            yield min(last, _kth_largest(every, rank))


def above(backend: Selections, source: AnySource, threshold: Tensor) -> Pairs:
    """See :meth:`..backends.protocol.Backend.above`; a process may have no rows, or no latents."""
    some = source.num_rows and source.num_latents
    return backend.above(source, threshold) if some else nothing(source)


def _own_largest(backend: Selections, source: AnySource, total: int) -> Pairs:
    """The largest pairs of this process; those of all processes are among them."""
    most = source.num_rows * source.num_latents
    return backend.largest_of_batch(source, min(total, most), None)[0] if most else nothing(source)


def _kth_largest(values: Tensor, k: int) -> float:
    return float(values.topk(k).values[-1])


def _rank_of_ties(pairs: Pairs, equal: Tensor, sharers: Sharers) -> Tensor:
    """The 0-based place of each ``equal`` pair (bool [P]) among those of all, by (row, latent): int64 [P]."""
    rows, shards, row_group = pairs.rows(), sharers.shards, sharers.row_group
    each = torch.stack(shards.group.gather(torch.bincount(rows[equal], minlength=pairs.num_rows)), dim=1)
    before = (each.flatten().cumsum(0) - each.flatten()).view_as(each)[:, shards.group.rank]
    own = each[:, shards.group.rank]
    in_row = equal.cumsum(0) - 1 - (own.cumsum(0) - own)[rows]
    in_lower_rows = sum(row_group.gather(each.sum())[: row_group.rank])
    return before[rows] + in_row + in_lower_rows


def nothing(source: AnySource) -> Pairs:
    """No pair of the rows of ``source``."""
    none = torch.zeros(0, dtype=torch.int64, device=source.device)
    row_ptr = torch.zeros(source.num_rows + 1, dtype=torch.int64, device=source.device)
    return Pairs(
        row_ptr=row_ptr,
        latent=none,
        value=torch.zeros(0, device=source.device),
        num_latents=source.num_latents,
    )
