"""Tensors of a ``.pt`` file that ``torch.save`` wrote, without unpickling it.

Such a file is a zip archive. Its member ``data.pkl`` says in pickle's language which tensors there are; the
numbers are in members of their own. ``pickletools`` cuts that language into its instructions and runs none.
:class:`_Reader` follows the few instructions that a dict of tensors needs: it imports nothing, calls nothing
of the file's choice, and refuses every other instruction and name.
"""

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UsageError
from ..tensor_file import MAX_DIMENSIONS, TensorInfo
from .stored_zip import StoredZip, damaged, open_stored_zip

MAX_PICKLE_BYTES = 1 << 16  # a dict of a hundred tensors has a fifth of it
_DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_DICT = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"


@dataclass(frozen=True)
class _Name:
    """Something that the file would import."""

    name: str


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is: elements ``offset`` onwards of the member ``data/<key>``, with its strides."""

    info: TensorInfo
    key: str
    num_stored: int
    offset: int
    stride: tuple[int, ...]


class _Mark:
    pass


def read_description(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; no number of them is read.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged, of torch before 1.6, or holds something else than named tensors.
    """
    with open_stored_zip(path) as archive:
        return _describe(archive)[1]


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file; errors as :func:`read_description`.

    Raises:
        UsageError: its numbers are missing or damaged.
    """
    with open_stored_zip(path) as archive:
        prefix, tensors = _describe(archive)
        stored = tensors[name]
        member = f"{prefix}data/{stored.key}"
        dtype, expected = stored.info.dtype, stored.num_stored * stored.info.dtype.itemsize
        if archive.size(member) != expected:
            raise damaged(path, f"{member[:80]!r} has {archive.size(member)} bytes, expected {expected}")
        if prod(stored.info.shape) == 0:
            return torch.empty(stored.info.shape, dtype=dtype)
        whole = torch.frombuffer(archive.read(member), dtype=dtype)
        return whole.as_strided(stored.info.shape, stored.stride, stored.offset).contiguous()


def _describe(archive: StoredZip) -> tuple[str, dict[str, StoredTensor]]:
    """The folder within the archive, and the tensors by name."""
    path = archive.path
    found = [name for name in archive.names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise damaged(path, "it is no file of torch.save (1.6 or newer): it has no data.pkl, or several")
    prefix = found[0].removesuffix("data.pkl")
    if archive.size(found[0]) > MAX_PICKLE_BYTES:
        raise damaged(path, f"its data.pkl has more than {MAX_PICKLE_BYTES} bytes: it is no dict of tensors")
    order = f"{prefix}byteorder"
    if order in archive and archive.size(order) <= 16 and bytes(archive.read(order)) != b"little":
        raise damaged(path, "its numbers are not little-endian")
    try:
        value = _Reader().read(bytes(archive.read(found[0])))
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{path} is not read: it should hold tensors by name, as torch.save(model.state_dict(), ...) "
            f"writes them ({error!s:.200}). Pickles are never run: save the state dict alone, or as "
            "safetensors"
        ) from None
    return prefix, value


class _Reader:
    """Follows the instructions of ``data.pkl`` with plain values. Any surprise is a ValueError."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, content: bytes) -> dict[str, StoredTensor]:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                break
            self._follow(opcode.name, argument)
        (value,) = self.stack
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
        for name, tensor in value.items():
            if not (isinstance(name, str) and isinstance(tensor, StoredTensor)):
                raise ValueError(f"entry {name!r:.80} is no tensor")
        return value

    def _follow(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "NONE":
                stack.append(None)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                stack.append(_Mark())
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(self._last(count))]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_Name(argument))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_make(stack.pop(), arguments))
            case "SETITEM":
                pair = self._last(2)
                del stack[-2:]
                self._set(pair)
            case "SETITEMS":
                self._set(self._above_mark())
            case "BUILD":  # attributes of the dict, as the versions of modules: not used
                stack.pop()
                self._dict()
            case _:
                raise ValueError(f"instruction {name}")

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("an instruction lacks its values")
        return self.stack[-count:]

    def _set(self, pairs: list[Any]) -> None:
        """Set entries: names and values in turns. The hash of a tuple of tuples may take for ever."""
        if not all(isinstance(name, str | int) for name in pairs[::2]):
            raise ValueError("the name of an entry is no text")
        self._dict().update(zip(pairs[::2], pairs[1::2], strict=True))

    def _dict(self) -> dict[Any, Any]:
        value = self._last(1)[0]
        if not isinstance(value, dict):
            raise ValueError("an entry is set in something else than a dict")
        return value

    def _above_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[at], _Mark):
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        raise ValueError("an instruction lacks its mark")


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    num_stored: int


def _storage(value: Any) -> _Storage:
    match value:
        case ("storage", _Name(name), str(key), str(), int(number)) if name in _DTYPES and number >= 0:
            return _Storage(_DTYPES[name], key, number)
    raise ValueError("a storage is described in another way than torch does")


def _make(maker: Any, arguments: Any) -> Any:
    match maker, arguments:
        case _Name(name), () if name == _DICT:
            return {}
        case _Name(name), (StoredTensor() as tensor, bool(), *_) if name == _PARAMETER:
            return tensor
        case (
            _Name(name),
            (_Storage() as storage, int(offset), tuple(size), tuple(stride), bool(), Mapping(), *_),
        ) if name == _TENSOR:
            return _tensor(storage, offset, size, stride)
    raise ValueError(f"it would call {maker.name if isinstance(maker, _Name) else 'something'!s:.80}")


def _tensor(storage: _Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> StoredTensor:
    numbers = [offset, *size, *stride]
    if (
        len(size) != len(stride)
        or len(size) > MAX_DIMENSIONS
        or any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers)
    ):
        raise ValueError("a tensor's sizes are no sizes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if prod(size) > storage.num_stored or (prod(size) and last >= storage.num_stored):
        raise ValueError("a tensor is larger than its storage")
    return StoredTensor(TensorInfo(storage.dtype, size), storage.key, storage.num_stored, offset, stride)
