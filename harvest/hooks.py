"""Activations at hook points: read them, replace them, and probe whether they are what their names say."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any

import torch
from torch import nn

from ..common.errors import UsageError
from .hook_points import HookPoint, parse_hook, resolve_hook

PROBE_SEQUENCES, PROBE_POSITIONS = 2, 8
# A missing norm or scale in a block is far above this share of what the block adds.
_SUM_TOLERANCE = 0.05
_ATTACHING = Lock()  # torch numbers hooks without a lock of its own


@dataclass(frozen=True)
class HookOutput:
    """What a hook gives: tensors [sequences, positions, width], maybe on another device than other hooks."""

    width: int
    dtype: torch.dtype
    device: torch.device


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


def probe_hooks(
    model: nn.Module,
    points: Iterable[HookPoint],
    forward: Callable[[torch.Tensor], object],
    *,
    num_layers: int,
    model_name: str,
    max_positions: int | None,
    device: torch.device,
) -> dict[str, HookOutput]:
    """What each hook gives, found by running the model on a few tokens (on ``device``) before the long work.

    Raises:
        UsageError: a hook that never fires, gives another shape than [sequences, positions, width], an
            ``attn_out`` or ``mlp_out`` that is not what its block adds to the residual stream, or a
            ``resid_mid`` that is not the stream with ``attn_out`` added.
    """
    points = list(points)
    wanted = {point.name: point for point in points}
    layers = sorted({layer for name in wanted for layer in _layer_of_half(name)})
    for layer in layers:
        for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"):
            name = f"{kind}.{layer}"
            wanted.setdefault(name, resolve_hook(model, name, num_layers, model_name))
    positions = min(PROBE_POSITIONS, max_positions or PROBE_POSITIONS)
    ids = torch.arange(PROBE_SEQUENCES * positions, device=device).reshape(PROBE_SEQUENCES, positions) + 1
    ids %= model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    seen: dict[str, torch.Tensor] = {}

    def receive(name: str, x: torch.Tensor) -> None:
        seen[name] = x.clone()

    read_hooks(lambda: forward(ids), model, wanted.values(), receive, ids.shape)
    asked = {point.name for point in points}
    for name, x in seen.items():
        if x.ndim != 3 or x.shape[:2] != ids.shape or not x.is_floating_point():
            why = "" if name in asked else f" (needed to check what block {name.rsplit('.')[-1]} adds up to)"
            raise UsageError(
                f"hook {name}{why}: expected a float tensor [sequences, positions, width], here "
                f"({PROBE_SEQUENCES}, {positions}, width), got {x.dtype} {tuple(x.shape)}; give a module "
                "path instead"
            )
    for layer in layers:
        _check_sum(seen, layer)
        if f"resid_mid.{layer}" in seen:
            _check_middle(seen, layer)
    return {
        point.name: HookOutput(int(x.shape[2]), x.dtype, x.device)
        for point in points
        for x in [seen[point.name]]
    }


def _layer_of_half(name: str) -> list[int]:
    parsed = parse_hook(name)
    return [parsed[1]] if parsed is not None and parsed[0] in ("attn_out", "mlp_out", "resid_mid") else []


def _check_sum(seen: dict[str, torch.Tensor], layer: int) -> None:
    """resid_post = resid_pre + attn_out + mlp_out, in sequential and in parallel blocks alike."""
    error = _error_of_sum(seen, layer, "resid_post", ("attn_out", "mlp_out"))
    if error is not None:
        raise UsageError(
            f"block {layer} of this model does not add up as resid_pre + attn_out + mlp_out = resid_post "
            f"(relative error {error:.2g}), so attn_out.{layer} and mlp_out.{layer} have no "
            "meaning here; give module paths instead"
        )


def _check_middle(seen: dict[str, torch.Tensor], layer: int) -> None:
    """resid_mid = resid_pre + attn_out, which no place of a parallel block holds."""
    error = _error_of_sum(seen, layer, "resid_mid", ("attn_out",))
    if error is not None:
        raise UsageError(
            f"block {layer} of this model has no resid_mid.{layer}: nothing in it reads resid_pre + attn_out "
            f"(relative error {error:.2g}), as where attention and MLP read the same stream in parallel; "
            f"take resid_pre.{layer}, or mlp_in.{layer} for what the MLP reads"
        )


def _error_of_sum(
    seen: dict[str, torch.Tensor], layer: int, total: str, halves: tuple[str, ...]
) -> float | None:
    """The relative error of ``total`` = resid_pre + ``halves`` at a layer; None where it is rounding."""
    rounding = torch.finfo(seen[f"{total}.{layer}"].dtype).eps  # of the stream, which may be far larger
    names = (f"{kind}.{layer}" for kind in ("resid_pre", total, *halves))
    before, after, *parts = (seen[name].float().cpu() for name in names)  # maybe of several devices
    added = torch.stack(parts).sum(0)
    difference = float((after - before - added).norm())
    scale = float(torch.maximum((after - before).norm(), added.norm()))
    # NaN passes here: it is reported later, with its document and position.
    if difference > _SUM_TOLERANCE * scale + rounding * float(before.norm() + after.norm()):
        return difference / scale
    return None
