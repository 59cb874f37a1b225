"""A pretended device: tensors that say they are on a GPU and hold their numbers in main memory.

``with pretended_device() as counts`` makes the device ``"gpu"`` usable. Every operation of torch on its
tensors, and every Triton kernel in the interpreter, is checked as a GPU would check it: all arguments are on
the device (a tensor without dimensions may stay in main memory where torch allows it). The numbers are real,
so that code runs on that depends on them. ``counts`` says what the same calls would have cost:

- a launch: every operation that computes, and every kernel. Views, and memory that is only allocated, are
  none. An operation that a GPU does in several launches, as a sort, counts as one.
- a synchronization: whatever makes the host wait for the device, or copies ordinary memory. A copy to the
  host that is started with ``non_blocking`` is none; its numbers arrive when its event is waited for, and are
  NaN before.
- bytes: all arguments of an operation are read once and its results written once. Rows that a lookup gathers
  count each time. See :mod:`.kernel_traffic` for Triton's kernels.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import saecache
from saecache.common import transfers

from .kernel_traffic import bytes_of_kernel, size_of

aten = torch.ops.aten
PROJECT = str(Path(saecache.__file__).parent) + "/"

VIEWS = {
    "view", "t", "t_", "transpose", "transpose_", "slice", "select", "expand", "alias", "detach",
    "as_strided", "unsqueeze", "unsqueeze_", "squeeze", "squeeze_", "permute", "_unsafe_view", "split",
    "split_with_sizes", "_reshape_alias", "diagonal", "view_as", "lift_fresh", "unbind",
}  # fmt: skip
ALLOCATIONS = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
COPIES = {aten._to_copy.default, aten.copy_.default}
READS = {"_local_scalar_dense", "is_nonzero", "equal"}  # give the host a number
WAITING = READS | {"nonzero", "bincount", "masked_select", "_unique2"}
GATHERS = {"index", "index_select", "gather", "embedding"}
NO_SCALARS = {"_embedding_bag", "mm", "addmm", "mv", "index_select", "gather", "scatter", "cat", "stack"}


class WrongDeviceError(RuntimeError):
    """Tensors of main memory and of the device meet in one operation."""


@dataclass
class Counts:
    """What calls would have cost on a GPU; the keys are an operation and a line of the project's code."""

    launches: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def reset(self) -> None:
        for counter in (self.launches, self.syncs, self.bytes):
            counter.clear()

    def launch(self, name: str, num_bytes: float) -> None:
        key = f"{name} {_line()}"
        self.launches[key] += 1
        self.bytes[key] += round(num_bytes)

    def sync(self, name: str) -> None:
        self.syncs[f"{name} {_line()}"] += 1


class PretendedTensor(torch.Tensor):
    """A tensor of the device; ``numbers`` has them in main memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    numbers: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> PretendedTensor:
        made: PretendedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=DEVICE,
        )
        made.numbers = real
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.numbers!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _active is not None, "tensors of the device are used inside pretended_device() only"
        return _active.run(func, args, kwargs or {})


class PretendedEvent:
    """The end of the copies that were started so far; waiting for it lets their numbers arrive."""

    def __init__(self, arriving: list[tuple[Tensor, Tensor]]) -> None:
        self._arriving = arriving.copy()
        arriving.clear()

    def is_reached(self) -> bool:
        return not self._arriving

    def wait(self) -> None:
        for target, numbers in self._arriving:
            target.copy_(numbers)


class _Dispatch(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self.arriving: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        ours = [t for t in tensors if isinstance(t, PretendedTensor)]
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not ours and (wanted is None or wanted.type != DEVICE.type):
            return func(*args, **kwargs)
        if func in COPIES:
            return self._copy(func, args, kwargs, wanted)
        name = func.name().split("::")[1].split(".")[0]
        self._check_devices(name, tensors, ours)
        self._count_waiting(name, args, kwargs)
        real_args, real_kwargs = tree_map_only(PretendedTensor, lambda t: t.numbers, (args, kwargs))
        if wanted is not None:
            real_kwargs["device"] = torch.device("cpu")
        out = func(*real_args, **real_kwargs)
        if name in READS:
            return out
        if name not in VIEWS and name not in ALLOCATIONS:
            read = [t for t in ours if not any(t is other for other in _outputs(func, args, kwargs))]
            self.counts.launch(name, _bytes_of(name, real_args, read, out))
        written = [
            value
            for argument, value in _named_arguments(func, args, kwargs)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written and func._schema.returns:
            return written[0] if len(written) == 1 else tuple(written)
        return tree_map_only(Tensor, PretendedTensor, out)

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any], wanted: torch.device | None) -> Any:
        if func is aten._to_copy.default:
            source = args[0]
            real = source.numbers if isinstance(source, PretendedTensor) else source
            out = func(real, **{**kwargs, "device": torch.device("cpu")})
            to_device = (wanted or source.device).type == DEVICE.type
            if to_device != isinstance(source, PretendedTensor):
                self.counts.sync("copy to the device" if to_device else "copy to the host")
            elif to_device:
                self.counts.launch("copy", size_of(real) + size_of(out))
            return PretendedTensor(out) if to_device else out
        target, source, *rest = args
        real_target, real_source = to_host(target), to_host(source)
        here = isinstance(target, PretendedTensor)
        if here == isinstance(source, PretendedTensor):
            self.counts.launch("copy_", size_of(real_target) + size_of(real_source))
        elif not here and (kwargs.get("non_blocking") or True in rest):
            self.arriving.append((real_target, real_source.clone()))
            real_target.fill_(torch.nan if real_target.is_floating_point() else -1)
            return target
        elif real_source.dim() or not here:  # a number of the host goes along with the launch
            self.counts.sync("copy to the device" if here else "copy to the host")
        func(real_target, real_source, *rest, **kwargs)
        return target

    def _check_devices(self, name: str, tensors: list[Tensor], ours: list[PretendedTensor]) -> None:
        others = [t for t in tensors if not isinstance(t, PretendedTensor)]
        wrong = [t for t in others if t.dim() or (ours and name in NO_SCALARS)]
        if wrong and name != "lift_fresh":
            raise WrongDeviceError(
                f"{name} at {_line()}: {DEVICE} meets cpu {[tuple(t.shape) for t in wrong]}"
            )

    def _count_waiting(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if (
            name in WAITING
            or (name == "repeat_interleave" and kwargs.get("output_size") is None)
            or any(isinstance(t, Tensor) and t.dtype == torch.bool for t in masks)
        ):
            self.counts.sync(name)


_setup_privateuseone_for_python_backend("gpu")
DEVICE = torch.device("gpu", 0)
_active: _Dispatch | None = None


@contextmanager
def pretended_device() -> Iterator[Counts]:
    """Make the device ``"gpu"`` usable inside the block, and count what is done on it."""
    global _active
    counts = Counts()
    with pytest.MonkeyPatch.context() as patched, _Dispatch(counts) as mode:
        _active = mode
        patched.setattr(torch, "tensor", _made_then_moved(torch.tensor))
        patched.setattr(torch, "as_tensor", _made_then_moved(torch.as_tensor))
        patched.setattr(torch, "Generator", _OnTheHost)
        patched.setitem(transfers.EVENTS, DEVICE.type, lambda device: PretendedEvent(mode.arriving))
        _count_kernels(patched, counts)
        try:
            yield counts
        finally:
            _active = None


def to_host(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of either device, without being counted."""
    return tensor.numbers if isinstance(tensor, PretendedTensor) else tensor


class _OnTheHost(torch.Generator):
    """Random numbers of the device are those of the host."""

    def __new__(cls, device: Any = "cpu") -> _OnTheHost:
        return super().__new__(cls, device="cpu")


def _made_then_moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` makes its tensor in main memory first, as for a real device."""

    def made(data: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(device=device or data.device, dtype=dtype or data.dtype)
        tensor = make(data, dtype=dtype, **options)
        return tensor if device is None else tensor.to(device)

    return made


def _count_kernels(patched: pytest.MonkeyPatch, counts: Counts) -> None:
    from triton.runtime.interpreter import GridExecutor

    start = GridExecutor.__call__

    def run_grid(self: Any, *arguments: Any, **options: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        real = [to_host(a) if isinstance(a, Tensor) else a for a in arguments]
        if any(isinstance(t, PretendedTensor) for t in tensors):
            name = self.fn.__name__
            if not all(isinstance(t, PretendedTensor) for t in tensors):
                raise WrongDeviceError(f"{name} at {_line()}: {DEVICE} meets cpu")
            named = dict(zip(self.arg_names, real, strict=False)) | options
            start(self, *real, **options)
            counts.launch(name, bytes_of_kernel(name, named))
            return None
        return start(self, *real, **options)

    patched.setattr(GridExecutor, "__call__", run_grid)


def _named_arguments(func: Any, args: Any, kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    arguments = func._schema.arguments
    by_place = list(zip(arguments, args, strict=False))
    return by_place + [(a, kwargs[a.name]) for a in arguments if a.name in kwargs]


def _outputs(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """The tensors that a call only writes: ``out=...``."""
    return [value for argument, value in _named_arguments(func, args, kwargs) if argument.is_out]


def _bytes_of(name: str, real_args: Any, read: list[PretendedTensor], out: Any) -> float:
    written = sum(size_of(t) for t in tree_flatten(out)[0] if isinstance(t, Tensor))
    if name in ("zero_", "fill_"):
        return written
    if name in GATHERS:
        return 2 * written + sum(size_of(t) for t in tree_flatten(real_args[1:])[0] if isinstance(t, Tensor))
    if name == "_embedding_bag":
        W, index = real_args[:2]
        return index.numel() * W.shape[1] * W.element_size() + size_of(out[0]) + size_of(index)
    return sum(size_of(t.numbers) for t in read) + written


def _line() -> str:
    """The innermost line of the project that is running."""
    for frame in reversed(traceback.extract_stack()):
        place = frame.filename.removeprefix(PROJECT)
        if place != frame.filename and not place.startswith((".venv", "tests")):
            return f"{place}:{frame.lineno}"
    return "?"
