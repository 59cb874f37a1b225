"""A group of processes and what they exchange. A group of one exchanges nothing.

Sums of float numbers are not offered: their rounding would depend on the number of processes. Callers gather
the terms and add them up in one order, or hand a running sum from process to process (:meth:`Group.send`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..common.errors import SaecacheError
from .connection import Connection, Sending, Traffic, bring_back
from .errors import OtherProcessError
from .messages import empty_head, join_value, length_of_rest, split_value

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Group:
    """Processes ``ranks`` of the world, of which this one is number ``rank``; they may be in any order.

    Every process of the group must call the same methods in the same order. They raise
    :class:`LostProcessError` if another one is gone.
    """

    rank: int = 0
    ranks: tuple[int, ...] = (0,)
    connection: Connection = field(default_factory=Connection)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def size(self) -> int:
        """The number of processes."""
        return len(self.ranks)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def share(self, count: int) -> range:
        """Which of ``count`` items are this process's: consecutive ones, about as many as others have."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks. All have the same shape."""
        if self.size == 1:
            return [tensor]
        device, tensor = tensor.device, self.connection.carried(tensor).contiguous()
        found = [torch.empty_like(tensor) for _ in self.ranks]
        ascending = sorted(range(self.size), key=self.ranks.__getitem__)  # the order of torch.distributed
        with self._exchange(tensor, self.size - 1):
            dist.all_gather([found[i] for i in ascending], tensor, group=self.connection.handle)
        return [part.to(device) for part in found]

    def gather_rows(self, tensor: Tensor) -> list[Tensor]:
        """The tensors [n, ...] of all processes, in the order of their ranks; n may differ."""
        if self.size == 1:
            return [tensor]
        return self._gather_padded(tensor, self._lengths(tensor))

    def collect_rows(self, tensor: Tensor, owner: int) -> list[Tensor]:
        """In process ``owner`` the tensors [n, ...] of all, in the order of their ranks; none in the others.

        The numbers of rows n may differ.
        """
        if self.size == 1:
            return [tensor]
        lengths = self._lengths(tensor)
        if self.rank == owner:
            rows = (tensor.new_empty(n, *tensor.shape[1:]) for n in lengths)
            return [tensor if r == owner else self.receive(part, r) for r, part in enumerate(rows)]
        self.wait([self.send(tensor.contiguous(), owner)])
        return []

    def exchange(self, tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Send each process its rows of ``tensor``; return what all send to this one, in their order.

        Args:
            tensor: [sum of counts, ...]; the first ``counts[0]`` rows are for the first process, and so on.
            counts: the same in all processes.
        """
        if self.size == 1:
            return [tensor]
        assert list(self.ranks) == sorted(self.ranks), "torch.distributed has ascending ranks"
        device, tensor = tensor.device, self.connection.carried(tensor)
        row = tensor[0].numel()
        found = tensor.new_empty(self.size, counts[self.rank], *tensor.shape[1:])
        with self._exchange(tensor[counts[self.rank] :], 1):
            dist.all_to_all_single(
                found.view(-1),
                tensor.contiguous().view(-1),
                [found[0].numel()] * self.size,
                [count * row for count in counts],
                group=self.connection.handle,
            )
        return list(found.to(device))

    def sum(self, counts: Tensor) -> Tensor:
        """The sum of whole numbers over all processes. ``counts`` is not changed."""
        assert not counts.is_floating_point(), "float sums depend on the order"
        return self._reduce(counts, dist.ReduceOp.SUM)

    def add_up(self, number: int) -> int:
        """The sum of a whole number that each process has."""
        return number if self.size == 1 else int(self.sum(torch.tensor(number)))

    def max(self, numbers: Tensor) -> Tensor:
        """The largest number over all processes, for each entry. ``numbers`` is not changed."""
        return self._reduce(numbers, dist.ReduceOp.MAX)

    def least(self, numbers: Tensor) -> Tensor:
        """The smallest number over all processes, for each entry. ``numbers`` is not changed."""
        return numbers if self.size == 1 else -self.max(-numbers)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any of the processes."""
        return flag if self.size == 1 else bool(self.max(torch.tensor(int(flag))))

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite ``tensor`` with the one of process ``source``; return it."""
        if self.size > 1:
            carried = self.connection.carried(tensor)
            with self._exchange(carried, self.size - 1 if self.rank == source else 0):
                dist.broadcast(carried, self.ranks[source], group=self.connection.handle)
            bring_back(carried, tensor)
        return tensor

    def send(self, tensor: Tensor, to: int) -> Sending:
        """Start to send ``tensor`` to process ``to``; wait for the result before it is overwritten.

        An empty tensor is not sent.
        """
        if tensor.numel() == 0:
            return Sending(None, tensor)
        tensor = self.connection.carried(tensor)
        with self._exchange(tensor, 1):
            return Sending(dist.isend(tensor, self.ranks[to], group=self.connection.handle), tensor)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        """Overwrite ``tensor`` with one that process ``source`` sends; return it."""
        if tensor.numel() == 0:
            return tensor
        carried = self.connection.carried(tensor)
        with self._exchange(carried, 0):
            dist.recv(carried, self.ranks[source], group=self.connection.handle)
        bring_back(carried, tensor)
        return tensor

    def wait(self, sending: Sequence[Sending]) -> None:
        """Wait until what :meth:`send` has started is done."""
        with self._exchange(torch.empty(0), 0):
            for work, _ in sending:
                if work is not None:
                    work.wait()

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all processes, which JSON can hold, in the order of their ranks."""
        if self.size == 1:
            return [value]
        head, rest = split_value(value)
        heads = self.gather(head)
        rests = self._gather_padded(rest, [length_of_rest(other) for other in heads])
        return [join_value(*parts) for parts in zip(heads, rests, strict=True)]

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.any(False)

    def on_first(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` in the first process; every process gets its result, which JSON can hold.

        Raises:
            OtherProcessError: it failed there; the first process raises the failure itself.
        """
        if self.size == 1:
            return function()
        said: dict[str, Any] = {}
        if self.is_first:
            try:
                said["result"] = function()
            except Exception as error:
                self._value_of_first({"failed": _describe(error)})
                raise
        found = self._value_of_first(said)
        if "failed" in found:
            raise OtherProcessError(self.ranks[0], *found["failed"])
        result: Result = found["result"]
        return result

    def spread(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result]:
        """The results of all ``items``, in their order; each process does some of them.

        Args:
            work: gives a result for each of the items that it is given. With several processes the results
                are what JSON can hold, and nothing in ``work`` may wait for the other processes.

        Raises:
            OtherProcessError: it failed in another process.
        """
        mine: Sequence[Result] = []
        with self.together():
            mine = work(items[self.rank :: self.size])
        found = self.gather_values(list(mine))
        return [found[number % self.size][number // self.size] for number in range(len(items))]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails in every process if it fails in one. Nothing in it may wait for the others.

        Raises:
            OtherProcessError: it failed elsewhere only.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        own = (0, "") if failure is None else _describe(failure)
        statuses = self.gather_values(own) if self.size > 1 else []
        if isinstance(failure, SaecacheError) and self._same_before(statuses):
            rank = next(i for i, (status, _) in enumerate(statuses) if status)
            raise OtherProcessError(self.ranks[rank], *own) from failure
        if failure is not None:
            raise failure
        for rank, (other, message) in enumerate(statuses):
            if other:
                raise OtherProcessError(self.ranks[rank], other, message)

    def _gather_padded(self, tensor: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """The tensors [n, ...] of all processes, whose ``lengths`` n all of them know."""
        longest = max(lengths)
        if longest == 0:
            return [tensor for _ in lengths]
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return [part[:n] for part, n in zip(self.gather(padded), lengths, strict=True)]

    def _value_of_first(self, value: Any) -> Any:
        """The value of the first process, which JSON can hold."""
        head, rest = split_value(value) if self.is_first else (empty_head(), torch.empty(0))
        length = length_of_rest(self.broadcast(head))
        if length and not self.is_first:
            rest = torch.empty(length, dtype=torch.uint8)
        return join_value(head, self.broadcast(rest) if length else rest)

    def _lengths(self, tensor: Tensor) -> list[int]:
        """The numbers of rows of all processes, by way of main memory: no device is waited for."""
        return [int(n) for n in self.gather(torch.tensor([len(tensor)]))]

    def _same_before(self, statuses: list[Any]) -> bool:
        """Whether a process before this one says the same, so that it is said once."""
        return statuses[self.rank] in statuses[: self.rank]

    def _reduce(self, numbers: Tensor, how: Any) -> Tensor:
        if self.size == 1:
            return numbers
        carried = self.connection.carried(numbers)
        found = carried.clone() if carried is numbers else carried
        with self._exchange(found, self.size - 1):
            dist.all_reduce(found, how, group=self.connection.handle)
        return found.to(numbers.device)

    @contextmanager
    def _exchange(self, tensor: Tensor, receivers: int) -> Iterator[None]:
        self.traffic.add(tensor, receivers)
        with self.connection.exchange(tensor):
            yield


ALONE = Group()
"""The group of this process alone."""


def _describe(error: Exception) -> tuple[int, str]:
    """The exit status that an error asks for, and what the other processes say of it."""
    told = str(error) if isinstance(error, SaecacheError) else type(error).__name__
    return getattr(error, "exit_status", 1), told
