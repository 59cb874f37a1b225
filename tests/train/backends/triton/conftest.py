"""Triton's kernels run in its interpreter here: they need no GPU."""

import os
from importlib.util import find_spec
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "1"

if find_spec("triton") is None:
    pytest.skip("triton cannot be installed on this platform", allow_module_level=True)

import triton.language as tl
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


def remember_types() -> None:
    """Make it half as fast again: it describes the type of every intermediate result anew, and most are one of
    a few.
    """
    blocks: dict[Any, Any] = {}
    shapes: dict[Any, Any] = {}
    in_numpy: dict[str, Any] = {}
    make_block, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    numpy_type = interpreter._get_np_dtype

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *[s.value if isinstance(s, tl.constexpr) else s for s in shape]
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = blocks[key]

    def tensor(self: Any, handle: Any, type: Any) -> None:
        key = tuple(type.shape) if type.is_block() else ()
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[key]

    def of_numpy(type: Any) -> Any:
        if type.name not in in_numpy:
            in_numpy[type.name] = numpy_type(type)
        return in_numpy[type.name]

    tl.block_type.__init__, tl.tensor.__init__ = block_type, tensor
    interpreter._get_np_dtype = of_numpy


patch_once()
remember_types()

from saecache.train.backends.triton import exact

# Larger blocks are fewer programs to interpret; test_exact.py shows that they change no bit.
exact.PAIRS, exact.TILE = 64, 16
