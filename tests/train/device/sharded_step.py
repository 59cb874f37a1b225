"""Steps of processes that share the latents of an SAE, each on a pretended device of its own.

They exchange tensors of the device as NCCL exchanges those of a GPU: a launch on the device, for which the
host does not wait.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.utils._pytree import tree_flatten, tree_map

from saecache.distributed import join_world

from ...distributed.harvesting import environment_of
from . import pretended_device
from .pretended_device import DEVICE, PretendedTensor, to_host
from .test_budgets import cost_of_a_step, settings_of

COLLECTIVES = ("all_gather", "all_reduce", "broadcast", "isend", "recv", "all_to_all_single")


@contextmanager
def exchanging() -> Iterator[None]:
    """A block in which the operations of torch.distributed take tensors of the pretended device."""

    def on_device(name: str, exchange: Callable[..., Any]) -> Callable[..., Any]:
        def exchanged(*arguments: Any, **options: Any) -> Any:
            tensors = [t for t in tree_flatten(arguments)[0] if isinstance(t, PretendedTensor)]
            if tensors and (active := pretended_device._active) is not None:
                active.counts.launch(name, sum(t.numel() * t.element_size() for t in tensors))
            return exchange(*tree_map(to_host, arguments), **options)

        return exchanged

    with pytest.MonkeyPatch.context() as patched:
        for name in COLLECTIVES:
            patched.setattr(dist, name, on_device(name, getattr(dist, name)))
        yield


def step(rank: int, size: int, port: int, kinds: Sequence[str], scale: int, out: Path) -> None:
    """Write what the second step of each of ``kinds`` costs process ``rank``, as JSON into ``out``."""
    os.environ.update(environment_of(rank, size, port))
    found = {}
    with join_world() as world, exchanging():
        world.everyone.connection.carries |= {DEVICE.type}
        for kind in kinds:
            with pytest.MonkeyPatch.context() as patched:
                counts = cost_of_a_step(settings_of(kind), scale, patched, group=world.everyone)
            found[kind] = {"launches": counts.launches.most_common(), "syncs": counts.syncs.most_common()}
    (out / f"{rank}.json").write_text(json.dumps(found))
