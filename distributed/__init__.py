"""Several processes that do one piece of work together: who they are, and what they say to each other.

Only this package knows of torch.distributed. With one process every operation is a no-op that returns its
input, so that callers have one path for both.
"""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_names

if TYPE_CHECKING:
    from .group import Group as Group
    from .launch import World as World
    from .launch import join_world as join_world
    from .launch import world as world

__all__ = ["Group", "World", "join_world", "world"]

__getattr__ = lazy_names(
    __name__,
    {"Group": "group", "World": "launch", "join_world": "launch", "world": "launch"},
)
