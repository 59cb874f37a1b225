"""NumPy arrays in a safetensors file, written without a copy and read by mapping it: torch is not needed.

The header is checked before an array is made of a byte: names, types and shapes are those that the reader
expects, and the arrays fill the file without gap or overlap.
"""

import hashlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...store.durable import replacing, write_all
from ...store.safetensors_header import HeaderEntry, lay_out, read_header
from ...store.untrusted_files import open_file

MAX_HEADER_BYTES = 1 << 20
_NAMES = {
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "float32": "F32",
}  # fmt: skip

Shape = tuple[int | str, ...]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Create or replace ``path``, durably and atomically. Equal arrays give equal bytes.

    Returns:
        The sha256 of the file, in hexadecimal.
    """
    ordered = sorted(
        arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])
    )  # keeps them aligned
    header, _ = lay_out(
        HeaderEntry(name, _NAMES[array.dtype.name], array.shape, array.nbytes) for name, array in ordered
    )
    digest = hashlib.sha256()
    with replacing(path) as file:
        for block in (header, *(_bytes(array) for _, array in ordered)):
            digest.update(block)
            write_all(file, block)
    return digest.hexdigest()


def _bytes(array: NDArray[Any]) -> bytes | memoryview:
    return np.ascontiguousarray(array).data.cast("B") if array.size else b""


def read_arrays(
    path: Path, expected: Mapping[str, tuple[str, Shape]], sizes: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """Map the arrays of ``path`` by name; they are read from the disk when they are looked at.

    Args:
        expected: the type and the shape of each array. A name in a shape stands for a size, the same wherever
            it occurs; ``name+1`` is one more. Names that end with ``?`` may be absent.
        sizes: sizes that are known already.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is not a regular file, or its header does not describe exactly its bytes, or other
            arrays than those expected.
    """
    with open_file(path) as file:
        try:
            header = read_header(file, MAX_HEADER_BYTES)
        except ValueError as error:
            raise _damaged(path, str(error)) from None
        places = _check_entries(path, header.entries, expected, dict(sizes), header.num_bytes)
        return {
            name: np.memmap(file, dtype, "r", header.first_byte + at, shape)
            if prod(shape)
            else np.zeros(shape, dtype=dtype)
            for name, (dtype, shape, at) in places.items()
        }


def _check_entries(
    path: Path,
    entries: Mapping[str, Any],
    expected: Mapping[str, tuple[str, Shape]],
    sizes: dict[str, int],
    num_bytes: int,
) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """The type, the shape and the first byte of each array; they are as expected, and fill ``num_bytes``."""
    needed = {name.removesuffix("?"): wanted for name, wanted in expected.items()}
    lacking = sorted(name for name in expected if not name.endswith("?") and name not in entries)
    if lacking or not entries.keys() <= needed.keys():
        unknown = sorted(name[:80] for name in entries.keys() - needed.keys())
        raise _damaged(path, f"it lacks the arrays {lacking}, and has {unknown[:9]} beside the expected ones")
    found, at = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: _start(item[1])):
        dtype, shape = needed[name]
        bound = _bind(shape, entry, sizes)
        nbytes = prod(bound) * np.dtype(dtype).itemsize
        wanted = {"dtype": _NAMES[dtype], "shape": bound, "data_offsets": [at, at + nbytes]}
        if entry != wanted:
            raise _damaged(path, f"array {name} should be {wanted}, got {entry!s:.200}")
        found[name] = (dtype, tuple(bound), at)
        at += nbytes
    if at != num_bytes:
        raise _damaged(path, f"its arrays take {at} bytes, and {num_bytes} follow the header")
    return found


def _start(entry: Any) -> int:
    match entry:
        case {"data_offsets": [int(start), int()]}:
            return start
    return -1


def _bind(shape: Shape, entry: Any, sizes: dict[str, int]) -> list[int]:
    """The expected shape as numbers; sizes that are not known yet are taken from the entry."""
    got = entry.get("shape") if isinstance(entry, dict) else None
    bound = []
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            bound.append(size)
            continue
        name, _, more = size.partition("+")
        more_rows = int(more or 0)
        if name not in sizes:
            there = got[axis] if isinstance(got, list) and len(got) == len(shape) else None
            if type(there) is not int or not more_rows <= there < 1 << 48:
                return [-1]
            sizes[name] = there - more_rows
        bound.append(sizes[name] + more_rows)
    return bound


def _damaged(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path} is damaged: {reason}; measure again with 'saecache evaluate'")
