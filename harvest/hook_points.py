"""Hook names -> places in a model, reading activations there, and replacing them.

``resid_pre.L`` and ``resid_post.L`` are the residual stream before and after block L; ``attn_out.L`` and
``mlp_out.L`` are what the two halves of block L add to it. Any module path
(``gpt_neox.layers.3.mlp.dense_h_to_4h``) is that module's output. Blocks are counted from 0.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn

from ..common.errors import UsageError

NAMED_HOOKS = ("resid_pre", "resid_post", "attn_out", "mlp_out")
_NAMED = re.compile(rf"({'|'.join(NAMED_HOOKS)})\.(\d+)")

# Where blocks of different model classes keep their halves. Blocks that normalize a half's output before
# adding it (Gemma 2 and 3, OLMo 2, GLM 4) add the output of that norm: it comes first, and whether the name
# really means that is settled by `post_norms`, and in the end by adding up (see probe.py).
_HALVES = {
    "attn_out": ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer"),
    "mlp_out": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2"),
}
_POST_NORMS = (  # (norm after attention, norm after the MLP)
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)


@dataclass(frozen=True)
class HookPoint:
    """``name`` as the user writes it, and the place: the input or the output of a module."""

    name: str
    module_path: str
    side: Literal["input", "output"]


def parse_hook(name: str) -> tuple[str, int] | None:
    """(kind, block number) of a named hook, None for a module path."""
    match = _NAMED.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def find_blocks(model: nn.Module, num_layers: int) -> tuple[str, nn.ModuleList] | None:
    """The model's list of decoder blocks and its path: the outermost ModuleList of ``num_layers`` modules."""
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    return min(lists, key=lambda item: item[0].count("."), default=None)


def check_layers(names: Iterable[str], num_layers: int, model_name: str) -> None:
    """Refuse blocks that the model does not have; needs no weights.

    Raises:
        UsageError: with the numbers there are.
    """
    for name in names:
        parsed = parse_hook(name)
        if parsed is not None and parsed[1] >= num_layers:
            raise UsageError(
                f"hook {name}: {model_name} has {num_layers} blocks, numbered 0 to {num_layers - 1}"
            )


def resolve_hook(model: nn.Module, name: str, num_layers: int, model_name: str) -> HookPoint:
    """Where ``name`` is in ``model``.

    Raises:
        UsageError: no such hook, with what there is.
    """
    parsed = parse_hook(name)
    if parsed is None:
        return _module_output(model, name)
    kind, layer = parsed
    check_layers([name], num_layers, model_name)
    blocks = find_blocks(model, num_layers)
    if blocks is None:
        raise UsageError(
            f"hook {name}: cannot find the list of {num_layers} decoder blocks in a {type(model).__name__}; "
            f"give module paths instead, such as {', '.join(_some_paths(model))}"
        )
    path = f"{blocks[0]}.{layer}"
    if kind == "resid_pre":
        return HookPoint(name, path, "input")
    if kind == "resid_post":
        return HookPoint(name, path, "output")
    half = _half(blocks[1][layer], kind)
    if half is None:
        children = ", ".join(child for child, _ in blocks[1][layer].named_children())
        raise UsageError(
            f"hook {name}: cannot tell which part of a {type(blocks[1][layer]).__name__} it is (it has "
            f"{children}); "
            f"give the module path instead, such as {path}.<name>"
        )
    return HookPoint(name, f"{path}.{half}", "output")


def _half(block: nn.Module, kind: str) -> str | None:
    children = dict(block.named_children())
    for norms in _POST_NORMS:
        if all(norm in children for norm in norms):
            return norms[0] if kind == "attn_out" else norms[1]
    return next((child for child in _HALVES[kind] if child in children), None)


def _module_output(model: nn.Module, name: str) -> HookPoint:
    paths = {path for path, _ in model.named_modules() if path}
    if name in paths:
        return HookPoint(name, name, "output")
    close = get_close_matches(name, [*paths, *(f"{kind}.0" for kind in NAMED_HOOKS)], n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise UsageError(
        f"no hook {name!r}: expected {', '.join(f'{kind}.L' for kind in NAMED_HOOKS)}, or a module path "
        "of this "
        f"{type(model).__name__}, such as {', '.join(_some_paths(model))}.{hint}"
    )


def _some_paths(model: nn.Module) -> list[str]:
    """A few module paths that show how they look in this model."""
    paths = [path for path, _ in model.named_modules() if re.search(r"\.0(\.|$)", path)]
    return paths[:4] or [path for path, _ in model.named_modules() if path][:4]


class _AllReceived(Exception):  # noqa: N818 - not an error: it ends a forward that has nothing more to give
    """Raised in the last hook that was waited for."""


def read_hooks(
    forward: Callable[[], object],
    model: nn.Module,
    points: Iterable[HookPoint],
    receive: Callable[[str, torch.Tensor], None],
) -> None:
    """Run ``forward`` until every point has fired, handing each activation to ``receive`` when it does.

    ``receive`` must copy what it wants to keep: a model may go on to change the tensor in place.

    Raises:
        UsageError: a point never fired, or gave something else than one tensor.
    """
    points = list(points)
    pending = {point.name for point in points}

    def on_activation(point: HookPoint, value: Any) -> None:
        if point.name in pending:
            receive(point.name, _tensor(value, point))
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
def _attached(
    model: nn.Module, points: Iterable[HookPoint], on_activation: Callable[[HookPoint, Any], None]
) -> Iterator[None]:
    handles = []
    try:
        for point in points:
            module = model.get_submodule(point.module_path)
            if point.side == "input":

                def before(_m: Any, args: Any, kwargs: Any, point: HookPoint = point) -> None:
                    on_activation(point, args[0] if args else kwargs.get("hidden_states"))

                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:

                def after(_m: Any, _args: Any, output: Any, point: HookPoint = point) -> None:
                    on_activation(point, _main(output))

                handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(
    model: nn.Module, point: HookPoint, replace: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Within it every forward of ``model`` goes on with ``replace(activation)`` at ``point``.

    Raises:
        UsageError: ``replace`` gave another shape.
    """

    def swap(value: Any) -> torch.Tensor:
        old = _tensor(value, point)
        new = replace(old)
        if new.shape != old.shape:
            raise UsageError(
                f"replacing {point.name}: expected shape {tuple(old.shape)}, got {tuple(new.shape)}"
            )
        return new.to(dtype=old.dtype, device=old.device)

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


def _main(output: Any) -> Any:
    """Blocks and attention modules may return (hidden states, extras...)."""
    return output[0] if isinstance(output, tuple) and output else output


def _tensor(value: Any, point: HookPoint) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"hook {point.name}: {point.module_path} gives {type(value).__name__}, expected a tensor "
            "[sequences, positions, width]; choose another module"
        )
    return value.detach()
