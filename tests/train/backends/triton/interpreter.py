"""Triton's interpreter runs the kernels of the tests: they need no GPU. Importing this file sets it up."""

import os
from importlib.util import find_spec
from typing import Any

import pytest

os.environ["TRITON_INTERPRET"] = "1"

if find_spec("triton") is None:
    pytest.skip("triton cannot be installed on this platform", allow_module_level=True)

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

from saecache.train.backends.triton import exact


def patch_once() -> None:
    """Make the interpreter ten times as fast: when a kernel starts, and for every call of a function
    inside it, it replaces all of Triton's operations by its own again. They stay replaced here.
    """
    replaced_for: set[Any] = set()
    replace = interpreter._patch_lang

    def replace_once(function: Any) -> Any:
        if function not in replaced_for:
            replaced_for.add(function)
            replace(function)
        return interpreter._LangPatchScope()  # which has nothing to restore

    def with_semantic(owner: Any, name: str, member: Any, _builder: Any, scope: Any) -> None:
        def operation(*arguments: Any, **options: Any) -> Any:
            options["_semantic"] = interpreter.interpreter_semantic
            return member(*arguments, **options)

        scope.set_attr(owner, name, operation)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        replace_once(self.fn)
        return self.rewrite()(*arguments, **options)

    interpreter._patch_lang, interpreter._patch_attr = replace_once, with_semantic
    interpreter.InterpretedFunction.__call__ = call


def remember_types() -> None:
    """Make it twice as fast again: it describes the type of every intermediate result anew, though most are
    one of a few, and looks for conversions and broadcasts where there are none.
    """
    shapes: dict[Any, Any] = {}
    made: dict[Any, Any] = {}
    in_numpy: dict[str, Any] = {}
    make_block, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    numpy_type, broadcast, convert = (
        interpreter._get_np_dtype,
        TritonSemantic.broadcast_impl_value,
        TritonSemantic.cast,
    )

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([s.value if isinstance(s, tl.constexpr) else s for s in shape])
        key = element_ty.name, sizes
        if key not in made:
            make_block(self, element_ty, shape)
            made[key] = shapes.setdefault(sizes, self.shape), self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = made[key]

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        key = tuple(kind.shape) if kind.is_block() else ()
        if key not in made:
            make_tensor(self, handle, kind)
            made[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.shape, self.numel = made[key]

    def of_numpy(kind: Any) -> Any:
        if kind.name not in in_numpy:
            in_numpy[kind.name] = numpy_type(kind)
        return in_numpy[kind.name]

    def broadcast_unlike(self: Any, lhs: Any, rhs: Any) -> Any:
        same = getattr(lhs.type, "shape", None) is getattr(rhs.type, "shape", None)
        return (lhs, rhs) if same else broadcast(self, lhs, rhs)

    def convert_unlike(self: Any, value: Any, kind: Any, *arguments: Any, **options: Any) -> Any:
        same = isinstance(kind, tl.dtype) and kind.name in (value.type.name, value.dtype.name)
        return value if same else convert(self, value, kind, *arguments, **options)

    tl.block_type.__init__, tl.tensor.__init__ = block_type, tensor
    TritonSemantic.broadcast_impl_value, TritonSemantic.cast = broadcast_unlike, convert_unlike
    interpreter._get_np_dtype = of_numpy


if not hasattr(interpreter, "is_fast"):
    interpreter.is_fast = True  # type: ignore[attr-defined]
    patch_once()
    remember_types()
# Larger blocks are fewer programs to interpret; test_exact.py shows that they change no bit.
exact.PAIRS, exact.TILE = 64, 16
