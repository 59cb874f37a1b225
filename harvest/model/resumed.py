"""Forwards that begin in the middle: what the blocks before a hook gave for the same ids is handed on again.

SAEs that are spliced in at one hook change nothing before it, so that those blocks need to run only once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .hook_points import HookPoint, find_blocks

CHECKED_POSITIONS = 8


def blocks_before(model: nn.Module, point: HookPoint, num_layers: int) -> Sequence[nn.Module]:
    """The decoder blocks that are done when ``point`` fires; none where that cannot be told."""
    path, every = find_blocks(model, num_layers) or ("", [])
    of_point = [n for n in range(len(every)) if f"{point.module_path}.".startswith(f"{path}.{n}.")]
    if not of_point:
        return []
    is_block = point.module_path == f"{path}.{of_point[0]}" and point.sum_of is None
    blocks = list(every)[: of_point[0] + (is_block and point.side == "output")]
    # another library may run its own code around a block: to move weights, for example
    return [] if any("forward" in vars(block) for block in blocks) else blocks


class RememberedBlocks:
    """What the last of ``blocks`` gave in a forward within :meth:`remembering`; within :meth:`skipping` none
    of them runs.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._output: Any = None

    @property
    def is_known(self) -> bool:
        """Whether the blocks have run, so that they can be skipped."""
        return self._output is not None

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within it a forward of the model runs the blocks."""

        def remember(_module: Any, _args: Any, output: Any) -> None:
            self._output = _copied(output)

        handle = self._blocks[-1].register_forward_hook(remember, prepend=True)  # before it is replaced
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Within it a forward of the same ids goes on after the blocks. One thread may use the model then."""
        for block in self._blocks:
            block.forward = lambda *_, **__: _copied(self._output)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward


def can_resume(blocks: Sequence[nn.Module], forward: Callable[[], torch.Tensor]) -> bool:
    """Whether ``forward``, of a few ids, gives the same bits when the ``blocks`` are skipped.

    It does not where later blocks read more of the earlier ones than the residual stream.
    """
    remembered = RememberedBlocks(blocks)
    with remembered.remembering():
        whole = forward()
    try:
        with remembered.skipping():
            return torch.equal(forward(), whole)
    except Exception:  # noqa: BLE001 - whatever the model's code does without its blocks: it needs them
        return False


def _copied(output: Any) -> Any:
    """A block may change its input in place."""
    return tree_map_only(torch.Tensor, torch.clone, output)
