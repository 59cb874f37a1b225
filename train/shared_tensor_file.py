"""One safetensors file, written and read by processes that share its latents: each has its own rows.

The bytes are those that one process writes.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..store.durable import TEMPORARY_SUFFIX, fsync_folder
from . import tensor_file
from .latent_shards import WITHOUT_LATENTS, LatentShards
from .tensor_file import TensorInfo, bytes_of, damaged, lay_out, read_header, sha256_of


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], shards: LatentShards, shared: Collection[str] | None = None
) -> str:
    """Create or replace ``path`` together, durably and atomically; every process must call it.

    Args:
        tensors: those named in ``shared`` are this process's rows [n, ...]; the others are alike in all
            processes. None stands for :func:`shared_names`.

    Returns:
        The sha256 of the file, in hexadecimal.

    Raises:
        OSError: this process cannot write.
        OtherProcessError: another one cannot.
    """
    if shards.is_whole:
        return tensor_file.write_tensors(path, tensors)
    shared = shared_names(tensors) if shared is None else shared
    group, temporary = shards.group, path.with_name(path.name + TEMPORARY_SUFFIX)
    infos = {name: whole_info(tensor, shards, name in shared) for name, tensor in tensors.items()}
    header, offsets = lay_out(infos)
    size = len(header) + sum(info.num_bytes for info in infos.values())
    with group.together():
        if group.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as new:
                new.write(header)
                new.truncate(size)
    with group.together(), temporary.open("rb+") as file:
        for name, tensor in tensors.items():
            start = offsets[name]
            if name in shared:
                start += shards.first * (infos[name].num_bytes // max(1, shards.total))
            elif not group.is_first:
                continue
            _write_at(file.fileno(), tensor, start)
        os.fsync(file.fileno())

    def finish() -> str:
        checksum = sha256_of(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
        return checksum

    return group.on_first(finish)


def read_tensors(
    path: Path, shared: Collection[str], shards: LatentShards, wanted: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Read the tensors of ``path``: this process's rows of those in ``shared``, and all of the others.

    ``wanted`` names those to read; None reads every tensor.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: as :func:`.tensor_file.read_header`.
    """
    names = [name for name in read_header(path) if wanted is None or name in wanted]
    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: file.get_slice(name)[shards.own]
                if name in shared and not shards.is_whole
                else file.get_tensor(name)
                for name in names
            }
    except SafetensorError as error:
        raise damaged(path, str(error)) from None


def whole_info(tensor: Tensor, shards: LatentShards, shared: bool) -> TensorInfo:
    """The type and the shape of a tensor of all latents, of which a process has its rows."""
    info = TensorInfo.of(tensor)
    return TensorInfo(info.dtype, (shards.total, *info.shape[1:])) if shared else info


def _write_at(file: int, tensor: Tensor, start: int) -> None:
    view = bytes_of(tensor)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written


def shared_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with a row for each latent: all but single numbers and WITHOUT_LATENTS.

    A checkpoint has moments as well, as ``optimizer/exp_avg.b_dec``.
    """
    return [
        name for name, tensor in tensors.items() if tensor.dim() and _parameter(name) not in WITHOUT_LATENTS
    ]


def _parameter(name: str) -> str:
    """The parameter that a tensor belongs to: the last part of its name."""
    return name.rpartition("/")[2].rpartition(".")[2]
