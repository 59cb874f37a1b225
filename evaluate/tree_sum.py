"""Sums over the blocks of an evaluation, which have the same bits whatever number of processes makes them.

The sum of float numbers depends on their order. Here blocks are numbered, and added up in a fixed binary
tree: block 0 with 1, 2 with 3, then both of these sums, and so on. A process that has some consecutive blocks
adds up the parts of the tree that lie within them, at most two on each level, and hands these parts on.
"""

import torch
from torch import Tensor

from ..distributed.group import Group

Node = tuple[int, int]
"""Level and place in it: the sum of the blocks from place * 2^level to (place + 1) * 2^level - 1."""


class TreeSum:
    """The sum of tensors of one shape and float64, one for each of the blocks from ``first_block`` on."""

    def __init__(self, first_block: int = 0) -> None:
        self._next = first_block
        self._nodes: dict[Node, Tensor] = {}

    def add(self, term: Tensor) -> None:
        """Add the tensor of the next block, which nobody changes afterwards."""
        self._join((0, self._next), term)
        self._next += 1

    def _join(self, node: Node, term: Tensor) -> None:
        level, place = node
        while (sibling := self._nodes.pop((level, place ^ 1), None)) is not None:
            term = sibling + term
            level, place = level + 1, place >> 1
        self._nodes[level, place] = term

    def collect(self, group: Group, owner: int) -> None:
        """Bring the blocks of all processes of ``group`` to process ``owner``. The others have none then."""
        if group.size == 1:
            return
        own = list(self._nodes.items())
        described = group.gather_values([[*node, *term.shape] for node, term in own])
        shape = next((nodes[0][2:] for nodes in described if nodes), None)
        if shape is None:
            return
        empty = torch.empty(0, *shape, dtype=torch.float64)
        found = group.collect_rows(torch.stack([term for _, term in own]) if own else empty, owner)
        self._nodes = {}
        for nodes, rows in zip(described if found else [], found, strict=True):
            for (level, place, *_), term in zip(nodes, rows, strict=True):
                self._join((level, place), term)

    def total(self) -> Tensor | None:
        """The sum of all blocks; None of none."""
        in_order = sorted(self._nodes.items(), key=lambda item: item[0][1] << item[0][0])
        total: Tensor | None = None
        for _, term in in_order:
            total = term if total is None else total + term
        return total
