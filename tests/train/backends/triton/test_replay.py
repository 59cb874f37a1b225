"""Selections that are recorded once and replayed, by a pretended graph in Triton's interpreter.

The pretended graph writes down every operation of torch and every kernel with its arguments, and refuses what
a CUDA graph would refuse: whatever makes the host wait. A replay does the same again on the same memory.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from triton.runtime.interpreter import GridExecutor

from saecache.train.backends.protocol import AdamSettings
from saecache.train.backends.triton import replay
from saecache.train.backends.triton.adam import adam_step
from saecache.train.backends.triton.kept_rows import kept_rows
from saecache.train.backends.triton.largest import LargestPerRow, largest_per_row
from saecache.train.pairs import Pairs

WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2"}


class PretendedGraph(TorchDispatchMode):
    """What was done inside the block, to be done again."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Callable[[], object]] = []
        self._in_kernel = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._in_kernel:
            return out
        name = func.name().split("::")[1].split(".")[0]
        masks = [t for t in tree_flatten(args[1:])[0] if isinstance(t, Tensor) and t.dtype == torch.bool]
        assert name not in WAITING and not (name == "index" and masks), f"{name} makes the host wait"
        changes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        is_view = any(r.alias_info is not None for r in func._schema.returns) and not changes

        def again() -> None:
            found = func(*args, **kwargs)
            if not changes:
                for target, source in zip(tree_flatten(out)[0], tree_flatten(found)[0], strict=True):
                    target.copy_(source)

        if not is_view and not name.startswith(("empty", "new_empty")):
            self.done.append(again)
        return out

    def replay(self) -> None:
        for again in self.done:
            again()


def record(work: Callable[[], Any]) -> tuple[PretendedGraph, Any]:
    start = GridExecutor.__call__
    with pytest.MonkeyPatch.context() as patched, PretendedGraph() as graph:

        def run_grid(self: Any, *arguments: Any, **options: Any) -> None:
            graph._in_kernel = True
            start(self, *arguments, **options)
            graph._in_kernel = False
            graph.done.append(lambda: start(self, *arguments, **options))

        patched.setattr(GridExecutor, "__call__", run_grid)
        return graph, work()


def same(found: Pairs, wanted: Pairs) -> bool:
    return all(torch.equal(getattr(found, n), getattr(wanted, n)) for n in ("row_ptr", "latent", "value"))


@pytest.fixture
def weights() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(256, 16, generator=generator), torch.randn(256, generator=generator)


def batches(number: int, rows: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(number, rows, 16, generator=generator))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_a_replayed_selection_is_that_of_its_batch_and_weights(
    weights: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    W, b = weights
    monkeypatch.setattr(replay, "WARM_UPS", 1)
    recorded = []
    settings = AdamSettings(learning_rate=0.1, betas=(0.9, 0.99), eps=1e-8)
    moments = torch.zeros_like(W), torch.zeros_like(W)

    def counted(work: Callable[[], Any]) -> tuple[PretendedGraph, Any]:
        recorded.append(work)
        return record(work)

    before: list[tuple[Pairs, Pairs]] = []
    for step, x in enumerate(batches(4), 1):
        found = replay.largest_per_row(x, W, b, 3, kept_rows(W), record=counted)
        before.append((found, largest_per_row(x, W, b, 3)))
        # as in training: the weights change in place, and what is kept of them with them
        adam_step(W, torch.sign(W), *moments, step, settings, refresh=kept_rows(W))
        b.add_(0.1)
    assert len(recorded) == 1
    assert all(same(found, wanted) for found, wanted in before), "later replays leave former results alone"
    assert len({tuple(wanted.latent.tolist()) for _, wanted in before}) == len(before)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
@torch.no_grad()
def test_rows_that_overflow_in_a_replay_are_selected_whole(
    weights: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    W, b = weights
    W[:] = W[0].abs()  # all latents tie, so that every latent of a row is a candidate
    b.zero_()
    monkeypatch.setattr(replay, "WARM_UPS", 1)
    overflows = []
    whole = LargestPerRow._select_whole_rows
    monkeypatch.setattr(
        LargestPerRow,
        "_select_whole_rows",
        lambda self, rows: (overflows.append(len(rows)), whole(self, rows)),
    )
    for x in batches(3):
        found = replay.largest_per_row(x.abs(), W, b, 3, kept_rows(W), record=record)
        assert same(found, largest_per_row(x.abs(), W, b, 3))
    assert overflows and all(overflows)


def test_what_waits_for_the_device_cannot_be_recorded() -> None:
    replayed = replay.Replayed(lambda x: int(x.sum()), record, calls=replay.WARM_UPS)
    with pytest.raises(AssertionError, match="_local_scalar_dense makes the host wait"):
        replayed(torch.ones(3))


def test_nothing_is_replayed_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv(replay.VARIABLE, raising=False)
    assert not replay.is_wanted(cuda)
    monkeypatch.setenv(replay.VARIABLE, "1")
    assert replay.is_wanted(cuda) and not replay.is_wanted(torch.device("cpu"))
