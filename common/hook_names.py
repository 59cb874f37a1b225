"""The names of hooks. Every model has the named ones, such as ``resid_post.3``; others are modules' paths."""

import re

# In the order in which they are suggested.
NAMED_HOOKS = ("resid_post", "resid_mid", "resid_pre", "mlp_out", "mlp_in", "attn_out")
_NAMED = re.compile(rf"({'|'.join(NAMED_HOOKS)})\.([0-9]{{1,6}})")
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.|$)")


def parse_hook(name: str) -> tuple[str, int] | None:
    """(kind, block number) of a named hook, None for a module path."""
    match = _NAMED.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def block_of(hook: str) -> str | None:
    """The number of the block in a hook's name, as it is written there; None if it names none.

    It is 3 in ``resid_post.3`` and in ``gpt_neox.layers.3.mlp``.
    """
    found = _BLOCK.search(hook)
    return None if found is None else found[0]


def by_number(name: str) -> list[tuple[int, str]]:
    """The key that sorts ``resid_post.2`` before ``resid_post.10``: one order, however hooks were listed."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]
