"""Write and read named tensors as a safetensors file, atomically and without a second copy in memory."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..store.durable import TEMPORARY_SUFFIX, fsync_folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Create or replace ``path``, durably and atomically. Equal tensors give equal bytes.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    except SafetensorError as error:  # safetensors raises it for a full disk
        raise OSError(f"cannot write {path}: {error}") from error
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read the tensors of ``path`` by name."""
    tensors: dict[str, Tensor] = load_file(path, device=str(device))
    return tensors
