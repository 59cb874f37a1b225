"""Choose the backend for a tensor. Every folder beside this file is a backend; there is no list to edit.

The environment variable SAECACHE_BACKEND chooses one for the whole process.

A backend's ``__init__.py`` has ``serves(tensor) -> bool`` and ``PREFERENCE``, and imports nothing heavy. Its
module ``backend`` has the functions of :class:`.protocol.Backend`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import Tensor

from ...common.errors import UsageError
from .protocol import Backend

VARIABLE = "SAECACHE_BACKEND"
_forced: ContextVar[str | None] = ContextVar("forced_backend", default=None)


def backend_of(tensor: Tensor) -> Backend:
    """The backend for a tensor: among those that serve it, the one with the highest preference."""
    return load_backend(name_of_backend(tensor))


def name_of_backend(tensor: Tensor) -> str:
    """The name of the backend for a tensor: the one that is forced, or the first that serves it."""
    return forced_backend() or next(name for name, serves in _backends() if serves(tensor))


def forced_backend() -> str | None:
    """The backend that :func:`use_backend` or the environment variable names; it need not exist."""
    return _forced.get() or os.environ.get(VARIABLE) or None


def preferences(tensor: Tensor) -> dict[str, tuple[int, bool]]:
    """Every backend with its preference, the highest first, and whether it serves ``tensor``."""
    here = import_module(__package__)
    return {
        name: (import_module(f".{name}", here.__name__).PREFERENCE, serves(tensor))
        for name, serves in _backends()
    }


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use the backend ``name`` for everything inside the block; for comparisons and tests."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def load_backend(name: str) -> Backend:
    """Import the backend in the folder ``name``.

    Raises:
        UsageError: there is none.
    """
    names = [known for known, _ in _backends()]
    if name not in names:
        raise UsageError(f"there is no backend {name!r} ({VARIABLE}); known: {', '.join(names)}")
    module: Any = import_module(f".{name}.backend", __package__)
    backend: Backend = module
    return backend


@cache
def _backends() -> list[tuple[str, Callable[[Tensor], bool]]]:
    """The name and ``serves`` of every backend, by descending preference."""
    here = import_module(__package__)
    folders = [info.name for info in iter_modules(here.__path__) if info.ispkg]
    modules = {name: import_module(f".{name}", __package__) for name in folders}
    return [(n, m.serves) for n, m in sorted(modules.items(), key=lambda item: -item[1].PREFERENCE)]
