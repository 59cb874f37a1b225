"""Triton's kernels run in its interpreter here: they need no GPU."""

import os
from importlib.util import find_spec
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "1"

if find_spec("triton") is None:
    pytest.skip("triton cannot be installed on this platform", allow_module_level=True)

from triton.runtime import interpreter


def patch_once() -> None:
    """Make the interpreter about ten times as fast: for every call of a function inside a kernel it replaces
    all of Triton's operations by its own again, though it did so when the kernel started.
    """
    patched: set[Any] = set()
    start, replace = interpreter.GridExecutor.__call__, interpreter._patch_lang

    def run_grid(self: Any, *arguments: Any, **options: Any) -> Any:
        patched.clear()
        return start(self, *arguments, **options)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.fn not in patched:
            patched.add(self.fn)
            replace(self.fn)
        return self.rewrite()(*arguments, **options)

    interpreter.GridExecutor.__call__ = run_grid
    interpreter.InterpretedFunction.__call__ = call


patch_once()
