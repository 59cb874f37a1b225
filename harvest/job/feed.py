"""The sequences of a harvest handed out to its processes, in rounds that all of them go through together.

The first process reads and tokenizes the text: one stream is many times faster than the models of a machine.
In each round every process gets whole blocks of sequences that follow one another, so that their rows are the
same whoever makes them. What a process wants to say to the others is said between two rounds: that a stop was
asked for, that it has failed, and that what it has written is durable.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ...distributed.group import Group
from ..config import SelectionConfig
from ..text.packing import Sequences
from .stream import TokenBatch, keep_by_role

# Of each process, at least: then its meeting with the others takes no time to speak of. In larger rounds all
# would only notice a failure or a stop later.
ROUND_TOKENS = 1 << 12


class Share(NamedTuple):
    """One step of one process.

    Attributes:
        batch: sequences whose rows this process makes; None if the round has no more for it.
        first: number in the cache of the first of them.
        counted: in the first process, with its last step of a round: all sequences of the round.
        commit: whether everything up to here is to be made durable.
        marks: what all processes have made durable at the same point, for the first one to record.
    """

    batch: TokenBatch | None
    first: int
    counted: TokenBatch | None = None
    commit: bool = False
    marks: list[Any] | None = None


class Commits(Protocol):
    """Who makes rows durable in this process; see :class:`.row_writer.RowWriter`."""

    def commit_due(self) -> bool:
        """Whether it is time for a commit; asked in the first process."""

    def take_mark(self) -> Any:
        """What was made durable since this was last called, plain JSON; None for nothing."""


class Feed:
    """Hands out steps of ``step`` sequences to all processes of ``group``.

    Args:
        group: the processes.
        first: number in the cache of the first sequence to hand out.
        context: positions of a sequence.
        block: sequences of one forward; every process gets whole blocks.
        step: sequences of one step, whole blocks.
        selection: which positions become rows.
        stop_asked: whether this process was asked to stop.

    Attributes:
        stopped: some process was asked to stop, so that no more was handed out.
    """

    def __init__(
        self,
        group: Group,
        *,
        first: int,
        context: int,
        block: int,
        step: int,
        selection: SelectionConfig,
        stop_asked: Callable[[], bool],
    ) -> None:
        self.stopped = False
        self._group, self._first, self._context = group, first, context
        self._block, self._step = block, step
        self._selection = selection
        self._stop_asked = stop_asked
        self._marks: list[Any] = [None] * group.size
        self._others_know = False

    @property
    def round_sequences(self) -> int:
        """Sequences of a round: one step of a process alone, and some of each of several."""
        steps = max(1, ROUND_TOKENS // (self._step * self._context)) if self._group.size > 1 else 1
        return self._group.size * steps * self._step

    def shares(self, rounds: Iterator[TokenBatch], commits: Commits) -> Iterator[Share]:
        """The steps of this process, until the text ends or a stop was asked for anywhere.

        Args:
            rounds: batches of :attr:`round_sequences`, in the first process; nobody else looks at them.
            commits: of this process.

        Raises:
            OtherProcessError: another process has failed.
            LostProcessError: another process is gone.
        """
        while True:
            try:
                found = self._meet(rounds, commits)
            except BaseException:
                self._others_know = True
                raise
            if found is None:
                return
            yield from found

    def say_failed(self, error: Exception) -> None:
        """Raise ``error``, of this process, in all processes: at their next meeting if they do not know yet.

        Raises:
            OtherProcessError: another process says the same.
        """
        if not self._others_know:
            with self._group.together():
                raise error

    def _meet(self, rounds: Iterator[TokenBatch], commits: Commits) -> list[Share] | None:
        """What this process has to do in the next round; None after the last one."""
        group, batch = self._group, None
        asked = self._stop_asked()
        with group.together():
            if group.is_first and not asked:
                batch = next(rounds, None)
        plan = None if batch is None else [self._bounds(len(batch.sequences)), commits.commit_due()]
        answers = group.gather_values([asked, commits.take_mark(), plan])
        self.stopped = any(asked for asked, _, _ in answers)
        self._marks = [mark or known for (_, mark, _), known in zip(answers, self._marks, strict=True)]
        plan = answers[0][2]
        if self.stopped or plan is None:
            return None
        bounds, commit = plan
        own = self._pass_on(batch, bounds)
        shares = self._steps(own, self._first + bounds[group.rank])
        self._first += bounds[-1]
        if group.is_first and all(self._marks):
            shares[0] = shares[0]._replace(marks=self._marks)
            self._marks = [None] * group.size
        shares[-1] = shares[-1]._replace(counted=batch, commit=commit)
        return shares

    def _bounds(self, sequences: int) -> list[int]:
        """Where the share of each process begins, and the end: nearly equal numbers of whole blocks."""
        blocks, size = -(-sequences // self._block), self._group.size
        return [min(sequences, blocks * rank // size * self._block) for rank in range(size + 1)]

    def _pass_on(self, batch: TokenBatch | None, bounds: list[int]) -> TokenBatch:
        """Send the others their shares, or receive one; returns that of this process."""
        group = self._group
        if batch is not None:
            parts = [batch.part(start, stop).sequences for start, stop in pairwise(bounds)]
            group.wait([group.send(_as_tensor(part), rank) for rank, part in enumerate(parts) if rank])
            return batch.part(bounds[0], bounds[1])
        start, stop = bounds[group.rank], bounds[group.rank + 1]
        found = torch.empty(3, stop - start, self._context, dtype=torch.int32)
        ids, documents, roles = group.receive(found, 0).numpy()
        roles = roles.astype(np.uint8)
        return TokenBatch(Sequences(ids, documents, roles, []), keep_by_role(roles, self._selection))

    def _steps(self, own: TokenBatch, first: int) -> list[Share]:
        starts = range(0, len(own.sequences), self._step)
        steps = [Share(own.part(start, start + self._step), first + start) for start in starts]
        return steps or [Share(None, first)]


def _as_tensor(sequences: Sequences) -> torch.Tensor:
    """int32 [3, n, context]: ids, documents, roles."""
    arrays = (sequences.ids, sequences.documents, sequences.roles.astype(np.int32))
    return torch.from_numpy(np.stack(arrays))
