"""Packages that import their public names on first use, so that ``import saecache`` loads no torch."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` for ``package``.

    Args:
        package: ``__name__`` of the package.
        modules: public name -> the module below the package that defines it, without a leading dot.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return get


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def make_callable(package: str) -> None:
    """Let the package ``package`` be called: ``saecache.train(...)`` calls ``saecache.train.run(...)``."""
    sys.modules[package].__class__ = _CallablePackage
