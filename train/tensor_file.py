"""Write and read named tensors as a safetensors file, atomically and without a second copy in memory.

The bytes are those that ``safetensors`` writes, which puts the tensors in the order of their types (those
below, the first one first) and then of their names, behind a header of JSON that spaces fill up to a multiple
of 8 bytes. Its own function writes a file that nobody but its owner may read, and a killed process leaves it.

Files of others are read too. The header is checked before a byte of a tensor is read or memory is allocated
for it: its length, its names, types and shapes, and that the tensors fill the file without gap or overlap.
"""

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from math import inf, isfinite
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..common.errors import UsageError
from ..store import safetensors_header
from ..store.durable import append_early, replacing
from ..store.safetensors_header import HeaderEntry
from ..store.untrusted_files import open_file

MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS = 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """The type and the shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorInfo":
        return cls(tensor.dtype, tuple(tensor.shape))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Create or replace ``path``, durably and atomically. Equal tensors give equal bytes.

    Returns:
        The sha256 of the file, in hexadecimal. It is computed while the disk works.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    header, offsets = lay_out({name: TensorInfo.of(tensor) for name, tensor in tensors.items()})
    digest = hashlib.sha256()
    try:
        with replacing(path) as file, ThreadPoolExecutor(1) as pool:
            in_order = (bytes_of(tensors[name]) for name in sorted(tensors, key=offsets.__getitem__))
            for block in chain([memoryview(header)], in_order):
                hashed = pool.submit(digest.update, block)
                append_early(file, block)
                hashed.result()
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def lay_out(infos: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The header of a file of such tensors, and where the bytes of each begin in the file."""
    entries = [HeaderEntry(n, _CODES[info.dtype], info.shape, info.num_bytes) for n, info in infos.items()]
    entries.sort(key=lambda entry: (_ORDER.index(entry.dtype), entry.name))
    return safetensors_header.lay_out(entries)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values, in the order of its axes; those of a CPU are not copied."""
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(values.view(torch.uint8).numpy().data if values.numel() else b"")


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal; errors as :func:`..store.untrusted_files.open_file`."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The types and shapes of the tensors in ``path`` by name, from its first bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is not a regular file, or its header does not describe exactly its bytes.
    """
    try:
        with open_file(path) as file:
            header = safetensors_header.read_header(file, MAX_HEADER_BYTES)
    except UsageError:
        raise
    except ValueError as error:
        raise damaged(path, str(error)) from None
    entries, size = header.entries, header.first_byte + header.num_bytes
    entries.pop("__metadata__", None)
    found, ranges = {}, []
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
                dtype in DTYPES
                and len(shape) <= MAX_DIMENSIONS
                and all(type(n) is int and 0 <= n <= size for n in shape)
                and end - start == math.prod(shape) * DTYPES[dtype].itemsize
            ):
                found[name] = TensorInfo(DTYPES[dtype], tuple(shape))
                ranges.append((start, end))
            case _:
                raise damaged(path, f"the entry of tensor {name[:80]!r} contradicts itself")
    at = 0
    for start, end in sorted(ranges):
        if start != at:
            raise damaged(path, f"its tensors overlap or leave a gap at byte {min(start, at)}")
        at = end
    if at != header.num_bytes:
        raise damaged(path, f"its tensors should take {at} bytes, and {header.num_bytes} follow the header")
    return found


def check_header(path: Path, expected: Mapping[str, TensorInfo | tuple[TensorInfo, ...]]) -> None:
    """Make sure that ``path`` holds exactly the ``expected`` tensors; a tuple lists what is allowed.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: as :func:`read_header`; or the file lacks a tensor, has another one, or one is of another
            type or shape.
    """
    found = read_header(path)
    if found.keys() != expected.keys():
        lacking, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise UsageError(
            f"{path} lacks the tensors {lacking}, and has {[name[:80] for name in unknown[:9]]} beside the "
            "expected ones"
        )
    for name, wanted in expected.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if found[name] not in allowed:
            raise UsageError(
                f"{path}: tensor {name} should be {' or '.join(map(str, allowed))}, got {found[name]}"
            )


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read the tensors of ``path`` by name; errors as :func:`read_header`."""
    read_header(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise damaged(path, str(error)) from None
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def damaged(path: Path, reason: str) -> UsageError:
    """The error for a file that cannot be read."""
    return UsageError(f"{path} is not a readable safetensors file: {reason}")


def check_values(what: str, tensor: Tensor, num_latents: int, *, unbounded: bool) -> None:
    """Refuse floats that are not finite (a threshold may be infinity: never active) and indices beyond F."""
    if tensor.numel() == 0:
        return
    least, most = (float(extreme) for extreme in torch.aminmax(tensor))  # NaN if there is one
    if tensor.is_floating_point():
        if not (isfinite(least) or (unbounded and least == inf)) or not (isfinite(most) or unbounded):
            raise UsageError(f"{what} is not finite: its weights are damaged")
    elif not 0 <= least <= most < num_latents:
        raise UsageError(f"{what} should number the {num_latents} latents, got {least:g} to {most:g}")
