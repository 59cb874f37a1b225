"""Checks of a writer's arguments, before anything is made on disk."""

from collections.abc import Mapping

from ...common.errors import UsageError
from ..config import StorageConfig
from ..layout import MAX_CONTEXT, MAX_WIDTH, check_hook_names
from .planned_size import plan_layout


def check_settings(
    hooks: Mapping[str, int], context: int, heldout_fraction: float, storage: StorageConfig
) -> None:
    """Refuse what cannot become a cache.

    Raises:
        UsageError: naming the argument, what was expected and what was given.
    """
    if not hooks:
        raise UsageError("hooks: expected at least one hook name with its width")
    check_hook_names(list(hooks))
    for hook, width in hooks.items():
        if not 1 <= width <= MAX_WIDTH:
            raise UsageError(f"hooks: {hook} has width {width}, expected 1 to {MAX_WIDTH}")
    if not 1 <= context <= MAX_CONTEXT:
        raise UsageError(f"context must be from 1 to {MAX_CONTEXT}, got {context}")
    if not 0 <= heldout_fraction < 1:
        raise UsageError(f"heldout_fraction must be in [0, 1), got {heldout_fraction}")
    plan_layout(hooks, context, storage, train_rows=1)  # refuses chunks beyond the format
