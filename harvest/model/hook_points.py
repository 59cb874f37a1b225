"""Hook names -> places in a model.

``resid_pre.L`` and ``resid_post.L`` are the residual stream before and after block L; ``attn_out.L`` and
``mlp_out.L`` are what the two halves of block L add to it. ``resid_mid.L`` is the stream between the halves
(parallel blocks have none), and ``mlp_in.L`` is what the MLP reads, after its norm. Any module path
(``gpt_neox.layers.3.mlp.dense_h_to_4h``) is that module's output. Blocks are counted from 0. Gemma 3n carries
several streams side by side; its residual stream is the active one, which attention and MLP read.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from torch import nn

from ...common.errors import UsageError
from ...common.hook_names import NAMED_HOOKS, parse_hook

# Where blocks of different model classes keep their halves. Blocks that normalize a half's output before
# adding it (Gemma 2 and 3, OLMo 2, GLM 4) add the output of that norm: it comes first, and whether the name
# really means that is settled by `post_norms`, and in the end by adding up (see hooks.py).
_HALVES = {
    "attn_out": ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer"),
    "mlp_out": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2"),
}
_POST_NORMS = (  # (norm after attention, norm after the MLP)
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)
# Norms that read the stream between attention and MLP. Probing makes sure that one of them really does.
_MIDDLE_NORMS = (
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "ln_2",
    "ln2",
    "final_layer_norm",
    "ffn_norm",
    "norm_2",
    "norm2",
)


@dataclass(frozen=True)
class HookPoint:
    """``name`` as the user writes it, and the place: the input or the output of a module.

    ``stream`` is which of several residual streams [streams, n, T, D] it is, None where there is one. A place
    that other modules read beside this one (the stream between the halves of a block) is replaced by way of
    ``sum_of``: the stream before, and the half that is added to it.
    """

    name: str
    module_path: str
    side: Literal["input", "output"]
    stream: int | None = None
    sum_of: "tuple[HookPoint, HookPoint] | None" = None


def find_blocks(model: nn.Module, num_layers: int) -> tuple[str, nn.ModuleList] | None:
    """The model's list of decoder blocks and its path: the outermost ModuleList of ``num_layers`` modules."""
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    return min(lists, key=lambda item: item[0].count("."), default=None)


def expand_hooks(names: Iterable[str], num_layers: int) -> tuple[str, ...]:
    """``names`` with ``resid_post.*``, or the like, replaced by the hook of every block; each name once."""
    found: dict[str, None] = {}
    for name in names:
        kind, _, layer = name.rpartition(".")
        every = layer == "*" and kind in NAMED_HOOKS
        found |= dict.fromkeys(f"{kind}.{block}" for block in range(num_layers)) if every else {name: None}
    return tuple(found)


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
    if kind in ("resid_pre", "resid_post"):
        return HookPoint(name, path, "input" if kind == "resid_pre" else "output", _active_stream(model))
    half = _half(blocks[1][layer], kind)
    if half is not None and kind == "resid_mid":
        before, added = (
            resolve_hook(model, f"{part}.{layer}", num_layers, model_name)
            for part in ("resid_pre", "attn_out")
        )
        return HookPoint(name, f"{path}.{half}", "input", sum_of=(before, added))
    if half is None:
        children = ", ".join(child for child, _ in blocks[1][layer].named_children())
        raise UsageError(
            f"hook {name}: cannot tell which part of a {type(blocks[1][layer]).__name__} it is (it has "
            f"{children}); give the module path instead, such as {path}.<name>"
        )
    return HookPoint(name, f"{path}.{half}", "input" if kind == "mlp_in" else "output")


def _active_stream(model: nn.Module) -> int | None:
    """Which stream of an AltUp model (Gemma 3n) its halves read; None for models with one stream."""
    config = getattr(model, "config", None)
    found = getattr(config.get_text_config(), "altup_active_idx", None) if config is not None else None
    return None if found is None else int(found)


def _half(block: nn.Module, kind: str) -> str | None:
    """The part of ``block`` whose output (of ``mlp_in`` and ``resid_mid``: whose input) a named hook is."""
    children = dict(block.named_children())
    post_norms = next((norms for norms in _POST_NORMS if all(norm in children for norm in norms)), None)
    if kind == "mlp_in":
        mlp = next((child for child in _HALVES["mlp_out"] if child in children), None)
        return "fc1" if mlp == "fc2" and "fc1" in children else mlp
    if kind == "resid_mid":
        middle = (norm for norm in _MIDDLE_NORMS if norm in children and norm not in (post_norms or ()))
        return next(middle, None) or _half(block, "mlp_in")  # OLMo 2 has no norm before its MLP
    if post_norms is not None:
        return post_norms[0] if kind == "attn_out" else post_norms[1]
    return next((child for child in _HALVES[kind] if child in children), None)


def _module_output(model: nn.Module, name: str) -> HookPoint:
    paths = {path for path, _ in model.named_modules() if path}
    if name in paths:
        return HookPoint(name, name, "output")
    close = get_close_matches(name, [*paths, *(f"{kind}.0" for kind in NAMED_HOOKS)], n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise UsageError(
        f"no hook {name!r}: expected {', '.join(f'{kind}.L' for kind in NAMED_HOOKS)}, or a module path of "
        f"this {type(model).__name__}, such as {', '.join(_some_paths(model))}.{hint}"
    )


def _some_paths(model: nn.Module) -> list[str]:
    """A few module paths that show how they look in this model."""
    paths = [path for path, _ in model.named_modules() if re.search(r"\.0(\.|$)", path)]
    return paths[:4] or [path for path, _ in model.named_modules() if path][:4]
