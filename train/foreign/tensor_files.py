"""Named tensors of a file of others: safetensors, ``torch.save``, ``np.savez``; never unpickled.

The names, types and shapes of all tensors are known before a number of one is read.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...common.errors import UsageError
from ...common.memory import check_memory
from ..tensor_file import MAX_DIMENSIONS, TensorInfo, read_header
from .stored_zip import StoredZip, damaged, open_stored_zip
from .torch_file import read_description, read_tensor

Layout = Literal["FD", "DF", "F", "D", "1", "F or 1"]
"""The axes of a tensor in the file: D model width, F latents, 1 a single number."""

MAX_NPY_HEADER_BYTES = 4096
_NOT_NPY = (ValueError, TypeError, LookupError, SyntaxError, TokenError, RecursionError, MemoryError)
_NUMPY_DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<f8": torch.float64,
    "<i4": torch.int32,
    "<i8": torch.int64,
}


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """The tensors of one file: what there is, and how one of them is read."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            UsageError: there is none of this name.
        """
        if name not in self.tensors:
            have = ", ".join(sorted(key[:80] for key in self.tensors)[:12])
            raise UsageError(f"{self.path} lacks the tensor {name}; it has {have or 'none'}")
        return self.tensors[name].shape

    def number(self, name: str) -> float:
        """The value of a tensor of one number."""
        if prod(self.shape(name)) != 1:
            raise UsageError(f"{self.path}: tensor {name} should be one number, got {self.tensors[name]}")
        return float(self.read(name).double())


def open_tensors(path: Path) -> TensorFile:
    """Open a file by its ending: ``.safetensors``, ``.pt`` or ``.npz``.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is damaged, or holds something else than named tensors.
    """
    if path.suffix == ".pt":
        tensors = {name: stored.info for name, stored in read_description(path).items()}
        return TensorFile(path=path, tensors=tensors, read=lambda name: read_tensor(path, name))
    if path.suffix == ".npz":
        return TensorFile(path=path, tensors=_read_npz_headers(path), read=lambda name: _read_npy(path, name))
    return TensorFile(path=path, tensors=read_header(path), read=lambda name: _read_safetensor(path, name))


def read_parts(
    file: TensorFile,
    wanted: Mapping[str, tuple[str, Layout]],
    *,
    d_model: int,
    num_latents: int,
    others: Collection[str] = (),
) -> dict[str, Tensor]:
    """Read tensors under our names, float32, matrices as [F, D].

    Args:
        wanted: our name -> the name in the file, and its axes there.
        others: tensors that the file may have beside them, and that do not matter.

    Raises:
        UsageError: there is no latent, or rows of no width; a tensor is missing, of another shape, or holds
            no floats; the file has a tensor that is not known here, which may change what the SAE computes;
            or they do not fit into memory.
    """
    if not (num_latents and d_model):
        raise UsageError(
            f"{file.path} has {num_latents} latents of width {d_model}; there is no such SAE: copy it again"
        )
    sizes = {"F": num_latents, "D": d_model}
    for theirs, layout in wanted.values():
        shapes = [tuple(sizes[axis] for axis in one if axis in sizes) for one in layout.split(" or ")]
        if file.shape(theirs) not in shapes or not file.tensors[theirs].dtype.is_floating_point:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise UsageError(
                f"{file.path}: tensor {theirs} should be floats {expected}, got {file.tensors[theirs]}"
            )
    known = {theirs for theirs, _ in wanted.values()}.union(others)
    if unknown := sorted(name[:80] for name in file.tensors if name not in known):
        raise UsageError(
            f"{file.path} has tensors that are not known here: {', '.join(unknown[:9])}. They may change "
            "what the SAE computes, so it is not loaded; remove them from the file if they do not"
        )
    total = sum(4 * prod(file.shape(theirs)) for theirs, _ in wanted.values())
    check_memory(2 * total, torch.device("cpu"), f"loading {file.path}", "use another machine")
    parts = {}
    for ours, (theirs, layout) in wanted.items():
        tensor = file.read(theirs).float()
        parts[ours] = (tensor.T if layout == "DF" else tensor).contiguous()
    return parts


def _read_safetensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise damaged(path, str(error)) from None
    return tensor


def _read_npz_headers(path: Path) -> dict[str, TensorInfo]:
    with open_stored_zip(path) as archive:
        members = [name for name in archive.names if name.endswith(".npy")]
        return {name.removesuffix(".npy"): _parse_npy(archive, name).info for name in members}


def _read_npy(path: Path, name: str) -> Tensor:
    with open_stored_zip(path) as archive:
        header = _parse_npy(archive, f"{name}.npy")
        content = archive.read(f"{name}.npy")
    shape = header.info.shape
    if not prod(shape):
        return torch.empty(shape, dtype=header.info.dtype)
    numbers = torch.frombuffer(content, dtype=header.info.dtype, offset=header.length)
    if not header.by_columns:
        return numbers.reshape(shape)
    return numbers.reshape(shape[::-1]).permute(*reversed(range(len(shape))))


@dataclass(frozen=True)
class _NpyHeader:
    info: TensorInfo
    length: int  # bytes before the numbers
    by_columns: bool  # the numbers are in Fortran's order


def _parse_npy(archive: StoredZip, member: str) -> _NpyHeader:
    stream = BytesIO(archive.head(member, MAX_NPY_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(stream)
        parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, by_columns, dtype = parse(stream, max_header_size=MAX_NPY_HEADER_BYTES)
    except _NOT_NPY as error:
        raise damaged(archive.path, f"{member[:80]!r} is no array ({error!s:.100})") from None
    if dtype.str not in _NUMPY_DTYPES or len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape):
        raise damaged(
            archive.path, f"{member[:80]!r} holds {dtype.str:.40} {list(shape)[:9]}, no plain floats"
        )
    info = TensorInfo(_NUMPY_DTYPES[dtype.str], tuple(shape))
    found = archive.size(member) - stream.tell()
    if found != prod(shape) * info.dtype.itemsize:
        raise damaged(archive.path, f"{member[:80]!r} should have the numbers of {info}, got {found} bytes")
    return _NpyHeader(info, stream.tell(), bool(by_columns))
