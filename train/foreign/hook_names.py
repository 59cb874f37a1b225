"""Names of hooks in the words of other libraries: TransformerLens, Hugging Face modules, and ours.

A name that has no counterpart is kept as it is. The SAE can be used then, and a command that needs rows of a
cache says which hooks the cache has.
"""

import re

from ...common.hook_names import parse_hook

TRANSFORMER_LENS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}
# mlp_in has none: the hook_mlp_in of TransformerLens is the stream before the norm, which is resid_mid here.
_OURS = {theirs: ours for ours, theirs in TRANSFORMER_LENS.items()} | {"hook_mlp_in": "resid_mid"}
_BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.(\w+)")
_MODULE = re.compile(r"(?:[\w.]+\.)?(?:layers|h|blocks)[._]([0-9]{1,6})(?:\.(.+))?")
_HALVES = {  # modules of a block, as sparsify's hook points and Gemma Scope's configs name them
    "": "resid_post",
    "output": "resid_post",
    "mlp": "mlp_out",
    "mlp.output": "mlp_out",
    "post_feedforward_layernorm.output": "mlp_out",
    "attention": "attn_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
}


def to_transformer_lens(hook: str) -> str | None:
    """``resid_post.3`` -> ``blocks.3.hook_resid_post``; None for module paths and mlp_in, which have none."""
    kind, block = parse_hook(hook) or ("", 0)
    theirs = TRANSFORMER_LENS.get(kind)
    return None if theirs is None else f"blocks.{block}.{theirs}"


def from_transformer_lens(name: str) -> str:
    """``blocks.3.hook_resid_post`` -> ``resid_post.3``; other names stay."""
    match = _BLOCK.fullmatch(name)
    kind = None if match is None else _OURS.get(match[2])
    return name if match is None or kind is None else f"{kind}.{int(match[1])}"


def from_module(name: str) -> str:
    """``layers.3`` or ``model.layers.3.mlp`` -> ``resid_post.3`` or ``mlp_out.3``; other names stay."""
    match = _MODULE.fullmatch(name)
    kind = None if match is None else _HALVES.get(match[2] or "")
    return name if match is None or kind is None else f"{kind}.{int(match[1])}"


def same_activation(hook: str) -> str | None:
    """The other name of the same activation: the stream after block L is the one before block L + 1."""
    parsed = parse_hook(hook)
    if parsed is None:
        return None
    kind, block = parsed
    if kind == "resid_pre" and block > 0:
        return f"resid_post.{block - 1}"
    return f"resid_pre.{block + 1}" if kind == "resid_post" else None
