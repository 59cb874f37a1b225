"""Which latents this process holds, and what it exchanges with the processes that hold the others.

The F latents are divided into up to 64 units: those whose rows :func:`.backends.plain.products.weighted_sum`
adds up together. Process r of W holds consecutive whole units; its tensors number their latents from 0. Sums
over latents are made unit by unit, or handed from process to process, so that their bits do not depend on W.
One process holds all latents and exchanges nothing: every operation here then returns its input.

Legend: F all latents, n latents of this process, B rows, D model width, P pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from ..distributed.group import ALONE, Group
from .backends.choice import backend_of
from .backends.plain.products import part_of, sums_of_parts, total, weighted_sum
from .pairs import Pairs
from .selection.errors import NonFiniteError

Result = TypeVar("Result")

WITHOUT_LATENTS = frozenset({"b_dec", "b_in", "W_skip"})  # parameters that have no row for each latent
LEAST_CHUNK = 64  # rows of a running sum that travel together, at least
CHUNKS_PER_PROCESS = 4  # pieces of a running sum: while one travels, the next is added up


@dataclass(frozen=True, eq=False)
class LatentShards:
    """The latents of each process of a group.

    Attributes:
        bounds: the first latent of each process, ascending, and F at the end.
        group: the processes.
    """

    bounds: tuple[int, ...]
    group: Group = ALONE

    @classmethod
    def divide(cls, num_latents: int, group: Group = ALONE) -> "LatentShards":
        """Divide ``num_latents`` among the processes of ``group``; there must be a unit for each."""
        units, size = num_units(num_latents), group.size
        assert size <= units, f"{num_latents} latents have {units} units, too few for {size} processes"
        edges = (units * rank // size * unit_of(num_latents) for rank in range(size))
        return cls((*edges, num_latents), group)

    @property
    def total(self) -> int:
        """F."""
        return self.bounds[-1]

    @property
    def first(self) -> int:
        """The first latent of this process."""
        return self.bounds[self.group.rank]

    @property
    def count(self) -> int:
        """n."""
        return self.bounds[self.group.rank + 1] - self.first

    @property
    def fewest_and_most(self) -> tuple[int, int]:
        """The least and the largest number of latents that a process has."""
        counts = [last - first for first, last in pairwise(self.bounds)]
        return min(counts), max(counts)

    @property
    def own(self) -> slice:
        """The latents of this process among all."""
        return slice(self.first, self.first + self.count)

    @property
    def unit(self) -> int:
        """The number of latents of a unit; the last one may have fewer."""
        return unit_of(self.total)

    @property
    def is_whole(self) -> bool:
        """Whether this process holds all latents."""
        return self.group.size == 1

    def part(self, whole: Tensor) -> Tensor:
        """This process's part [n, ...] of a tensor [F, ...]."""
        return whole if self.is_whole else whole[self.own]

    def among_own(self, latents: Tensor) -> Tensor:
        """Those of ``latents`` (int64, of all F) that this process holds, as it numbers them."""
        if self.is_whole:
            return latents
        own = latents - self.first
        return own[(own >= 0) & (own < self.count)]

    def gather(self, part: Tensor) -> Tensor:
        """The tensor [F, ...] whose parts [n, ...] the processes have."""
        return self._gather(part, [last - first for first, last in pairwise(self.bounds)])

    def gather_units(self, part: Tensor) -> Tensor:
        """The tensor with a row for each unit of all latents; the processes have the rows of their units."""
        edges = (-(-bound // self.unit) for bound in self.bounds)
        return self._gather(part, [last - first for first, last in pairwise(edges)])

    def gather_columns(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The tensors [F] whose ``parts`` [n] the processes have, as float64, in one exchange."""
        return list(self.gather(torch.stack([part.double() for part in parts], dim=1)).unbind(1))

    def rows_of(self, part: Tensor, latents: Tensor) -> Tensor:
        """The rows of ``latents`` (int64 [m], of all F, any order) of a tensor with parts [n, ...]: [m, ...].

        The whole tensor exists nowhere.
        """
        if self.is_whole:
            return part[latents]
        owner = torch.bucketize(latents, latents.new_tensor(self.bounds[1:-1]), right=True)
        counts = torch.bincount(owner, minlength=self.group.size).tolist()
        found = self._gather(part[self.among_own(latents)], counts)
        by_owner = owner.argsort(stable=True)
        return torch.empty_like(found).index_copy_(0, by_owner, found)

    def sum(self, counts: Tensor) -> Tensor:
        """The sum of whole numbers over all processes."""
        return self.group.sum(counts)

    def add_up(self, number: int) -> int:
        """The sum of a number that each process has."""
        return self.group.add_up(number)

    def weighted_sum(self, weight: Tensor, rows: Tensor) -> Tensor:
        """weight @ rows over all latents: [n], [n, D] -> [D]."""
        if self.is_whole:
            return weighted_sum(weight, rows)
        return self.gather_units(sums_of_parts(weight, rows, self.unit)).sum(0)

    def sum_of_pairs(self, pairs: Pairs, values: Tensor) -> Tensor:
        """The sum of ``values`` [P] over the pairs of all processes: float64 []."""
        return total(self.gather(backend_of(values).sum_per_latent(pairs, values.double())))

    def chain(self, sums: Tensor, add: Callable[[slice], None], piece_rows: int = 1) -> None:
        """Let each process add its latents' terms to ``sums`` [m, ...], in the order of the latents.

        ``add(rows)`` adds this process's terms to some rows of ``sums``. What the first process has there is
        the start; in the end every process has the sum. The rows travel in pieces, of a multiple of
        ``piece_rows``, so that the processes work at the same time.
        """
        group = self.group
        if self.is_whole:
            add(slice(0, len(sums)))
            return
        size = max(LEAST_CHUNK, len(sums) // (CHUNKS_PER_PROCESS * group.size))
        size = -(-size // piece_rows) * piece_rows
        sending = []
        for start in range(0, len(sums), size):
            rows = slice(start, min(start + size, len(sums)))
            if not group.is_first:
                group.receive(sums[rows], group.rank - 1)
            add(rows)
            if not group.is_last:
                sending.append(group.send(sums[rows], group.rank + 1))
        group.wait(sending)
        group.broadcast(sums, group.size - 1)

    def decode(self, pairs: Pairs, W: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias + sum over a row's pairs, of all processes, of value * W[latent]: [B, D]; W is [n, D]."""
        backend = backend_of(W)
        if self.is_whole:
            return backend.decode(pairs, W, bias)
        sums = W.new_zeros(pairs.num_rows, W.shape[1])
        if bias is not None:
            sums.copy_(bias)

        def add(rows: slice) -> None:
            backend.add_decoded(pairs.slice_rows(rows.start, rows.stop), W, sums[rows])

        self.chain(sums, add)
        return sums

    def agreed(self, select: Callable[[], Result]) -> Result:
        """The result of ``select``, which succeeds in all processes or raises in all.

        Raises:
            NonFiniteError: of the process with the lowest latents; it numbers the latent among all.
        """
        return agreed(self.group, select, self.first)

    def divided(self, owners: "LatentShards", row_group: Group) -> "LatentShards":
        """This process's latents, divided among the processes of ``row_group``, which all have them.

        ``owners`` divide all latents among more processes: each of these has one process in every row group.
        The result numbers the latents as this process does.
        """
        start = self.group.rank * row_group.size
        bounds = owners.bounds[start : start + row_group.size + 1]
        return LatentShards(tuple(bound - self.first for bound in bounds), row_group)

    def scatter_sum(self, whole: Tensor) -> Tensor:
        """This process's rows of the sum of the tensors [F, ...] that all processes have: [n, ...].

        The processes' terms are added up in the order of their ranks.
        """
        if self.is_whole:
            return whole
        counts = [last - first for first, last in pairwise(self.bounds)]
        return sum_in_order(self.group.exchange(whole, counts)).clone()  # frees what the others sent

    def _gather(self, part: Tensor, counts: Sequence[int]) -> Tensor:
        """Join parts [count, ...] of known lengths."""
        if self.is_whole:
            return part
        longest = max(counts)
        if longest == 0:
            return part
        padded = part
        if len(part) < longest:
            padded = part.new_zeros(longest, *part.shape[1:])
            padded[: len(part)] = part
        found = self.group.gather(padded)
        return torch.cat([one[:count] for one, count in zip(found, counts, strict=True)])


def agreed(group: Group, select: Callable[[], Result], first: int = 0) -> Result:
    """The result of ``select``, which succeeds in all processes of ``group`` or raises in all.

    Raises:
        NonFiniteError: of the first process that failed, whose latents begin with ``first``.
    """
    if group.size == 1:
        return select()
    failure: NonFiniteError | None = None
    try:
        found = select()
    except NonFiniteError as error:
        failure = error.among_all(first)
    if group.any(failure is not None):
        messages = group.gather_values("" if failure is None else str(failure))
        raise NonFiniteError(next(filter(None, messages))) from failure
    return found


def sum_in_order(terms: Sequence[Tensor]) -> Tensor:
    """The sum of ``terms``, added to the first one in place, one after the other."""
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total


def unit_of(num_latents: int) -> int:
    """The number of latents of a unit: a 64th of many, 64 or less of few."""
    return part_of(num_latents)


def num_units(num_latents: int) -> int:
    """The number of units, which is the largest number of processes that can share the latents."""
    return -(-num_latents // unit_of(num_latents))
