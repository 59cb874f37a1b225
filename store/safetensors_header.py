"""The header of a safetensors file, in which each tensor has a type, a shape and a place; without torch."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

from .untrusted_files import parse_object


class HeaderEntry(NamedTuple):
    """A tensor to be written: its type as safetensors names it (``F32``), and its size in bytes."""

    name: str
    dtype: str
    shape: Sequence[int]
    num_bytes: int


class Header(NamedTuple):
    """What a header says: ``entries`` as they stand there, the byte at which tensors begin, and
    how many bytes they take."""

    entries: dict[str, Any]
    first_byte: int
    num_bytes: int


def lay_out(tensors: Iterable[HeaderEntry]) -> tuple[bytes, dict[str, int]]:
    """The header of a file with these tensors, in this order, and where in the file each begins.

    Spaces fill it up to a multiple of 8 bytes.
    """
    entries: dict[str, dict[str, Any]] = {}
    at = 0
    for tensor in tensors:
        end = at + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items()}


def read_header(file: BinaryIO, max_bytes: int) -> Header:
    """The header at the beginning of ``file``. Its entries may be anything.

    Raises:
        ValueError: it would end after the file or have more than ``max_bytes``, or is no object in JSON.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"its header would end after the file, which has {size} bytes")
    if length > max_bytes:
        raise ValueError(f"its header has {length} bytes, expected at most {max_bytes}")
    return Header(parse_object(file.read(length)), 8 + length, size - 8 - length)
