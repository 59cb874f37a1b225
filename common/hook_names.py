"""Hooks by name: the block that a name speaks of."""

import re

_BLOCK = re.compile(r"(?<=\.)\d+(?=\.|$)")


def block_of(hook: str) -> str | None:
    """The number of the block in a hook's name, as it is written there; None if it names none.

    It is 3 in ``resid_post.3`` and in ``gpt_neox.layers.3.mlp``.
    """
    found = _BLOCK.search(hook)
    return None if found is None else found[0]
