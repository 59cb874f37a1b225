"""Activations at hook points: read them, and replace them."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import torch
from torch import nn

from ...common.errors import UsageError
from .hook_points import HookPoint

_ATTACHING = Lock()  # torch numbers hooks without a lock of its own


class _AllReceived(Exception):  # noqa: N818 - not an error: it ends a forward that has nothing more to give
    """Raised in the last hook that was waited for."""


def read_hooks(
    forward: Callable[[], object],
    model: nn.Module,
    points: Iterable[HookPoint],
    receive: Callable[[str, torch.Tensor], None],
    shape: tuple[int, ...],
) -> None:
    """Run ``forward`` until every point has fired, handing each activation to ``receive`` when it does.

    Several threads may run forwards of one model at once: each sees its own activations only.

    Args:
        forward: runs ``model`` on token ids of shape ``shape`` [n, T].
        points: where to read.
        receive: is given (name, activation [n, T, D]). It must copy what it wants to keep: a model may go on
            to change the tensor in place.

    Raises:
        UsageError: a point never fired, or gave something else than one tensor.
    """
    points = list(points)
    pending = {point.name for point in points}

    def on_activation(point: HookPoint, value: Any) -> None:
        if point.name in pending:
            receive(point.name, _activation(value, point, shape))
            pending.discard(point.name)
            if not pending:
                raise _AllReceived

    with _attached(model, points, on_activation):
        try:
            forward()
        except _AllReceived:
            return
    raise UsageError(
        f"hook {', '.join(sorted(pending))} never fires: the model does not run that module on text; "
        "choose another"
    )


@contextmanager
def watched(model: nn.Module, point: HookPoint, receive: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Within it every forward of ``model`` in this thread hands the activation at ``point`` to ``receive``.

    It has the module's own shape, [..., D].
    """
    with _attached(model, [point], lambda p, value: receive(_activation(value, p, None))):
        yield


@contextmanager
def _attached(
    model: nn.Module, points: Iterable[HookPoint], on_activation: Callable[[HookPoint, Any], None]
) -> Iterator[None]:
    handles = []
    thread = get_ident()
    try:
        for point in points:
            module = model.get_submodule(point.module_path)
            if point.side == "input":
                # Without kwargs torch calls the hook of another thread that is being removed right now.
                def before(_m: Any, args: Any, kwargs: Any = None, point: HookPoint = point) -> None:
                    if get_ident() == thread:
                        on_activation(point, args[0] if args else kwargs.get("hidden_states"))

                with _ATTACHING:
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:

                def after(_m: Any, _args: Any, output: Any, point: HookPoint = point) -> None:
                    if get_ident() == thread:
                        on_activation(point, _main(output))

                with _ATTACHING:
                    handles.append(module.register_forward_hook(after))
        yield
    finally:
        with _ATTACHING:
            for handle in handles:
                handle.remove()


@contextmanager
def replaced(
    model: nn.Module,
    point: HookPoint,
    replace: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...] | None,
) -> Iterator[None]:
    """Within it every forward of ``model`` on ids of ``shape`` [n, T] goes on with ``replace(activation)``.

    With ``shape`` None ids may be of any shape, and ``replace`` is given the module's own, [..., D].

    Raises:
        UsageError: ``replace`` gave another shape.
    """
    if point.sum_of is not None:
        with _sum_replaced(model, *point.sum_of, replace, shape):
            yield
        return

    def swap(value: Any) -> torch.Tensor:
        old = _activation(value, point, shape)
        new = replace(old)
        if new.shape != old.shape:
            raise UsageError(
                f"replacing {point.name}: expected shape {tuple(old.shape)}, got {tuple(new.shape)}"
            )
        new = new.to(dtype=old.dtype, device=old.device)
        if point.stream is None:
            return new.reshape(value.shape)
        whole: torch.Tensor = value.clone()
        whole[point.stream] = new
        return whole

    def before(_m: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (swap(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": swap(kwargs.get("hidden_states"))}

    def after(_m: Any, _args: Any, output: Any) -> Any:
        new = swap(_main(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    module = model.get_submodule(point.module_path)
    if point.side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _sum_replaced(
    model: nn.Module,
    before: HookPoint,
    added: HookPoint,
    replace: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...] | None,
) -> Iterator[None]:
    """Replace the sum of the stream ``before`` and what is ``added`` to it, by changing what is added."""
    seen: list[torch.Tensor] = []

    def add(added_value: torch.Tensor) -> torch.Tensor:
        stream = seen.pop()
        return replace(stream + added_value) - stream

    def remember(point: HookPoint, value: Any) -> None:
        seen[:] = [_activation(value, point, shape)]

    with _attached(model, [before], remember), replaced(model, added, add, shape):
        yield


def _main(output: Any) -> Any:
    """Blocks and attention modules may return (hidden states, extras...)."""
    return output[0] if isinstance(output, tuple) and output else output


def _activation(value: Any, point: HookPoint, shape: tuple[int, ...] | None) -> torch.Tensor:
    """``value`` as [n, T, D], or as it is if ``shape`` is None. Some MLPs (OPT, Llama 4) work on rows [n * T,
    D].
    """
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"hook {point.name}: {point.module_path} gives {type(value).__name__}, expected a tensor "
            "[sequences, positions, width]; choose another module"
        )
    x = value.detach()
    if point.stream is not None and x.ndim == 4:
        x = x[point.stream]
    if shape is not None and x.ndim == 2 and len(x) == math.prod(shape):
        x = x.reshape(*shape, -1)
    return x
