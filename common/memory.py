"""How much memory there is, asked before a large part of it is taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .counts import format_bytes
from .errors import SaecacheError, UsageError

if TYPE_CHECKING:
    import torch

_PROC, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_memory(device: "torch.device") -> int | None:
    """The bytes that a process can still take on ``device``; None where the system does not say.

    On the CPU these are the available memory and the free swap, within the limit of the container; on a CUDA
    device the free memory, and what torch holds in reserve.
    """
    if device.type == "cuda":
        import torch

        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return available_main_memory()


def available_main_memory() -> int | None:
    """The bytes of available memory and free swap, within the limit of the container; None if unknown."""
    try:
        lines = (line.split() for line in _PROC.read_text("ascii").splitlines())
        kibibytes = {words[0]: int(words[1]) for words in lines if len(words) > 1}
        available = (kibibytes["MemAvailable:"] + kibibytes["SwapFree:"]) << 10
    except (OSError, ValueError, KeyError):  # not Linux
        return None
    limit = _container_limit()
    return available if limit is None else min(available, limit)


def check_memory(needed_bytes: int, device: "torch.device", what: str, fix: str) -> None:
    """Refuse to take memory that there is not.

    Args:
        what: what needs it, and ``fix``, what the user can do, for the message.

    Raises:
        UsageError: ``device`` has less than ``needed_bytes`` left.
    """
    available = available_memory(device)
    if available is not None and needed_bytes > available:
        raise UsageError(
            f"{what} takes {format_bytes(needed_bytes)} of memory, and {format_bytes(available)} are "
            f"available on {device}: {fix}"
        )


@contextmanager
def explain_out_of_memory(fix: str) -> Iterator[None]:
    """Give torch's error about a full device a message that says what to do, ``fix``.

    Raises:
        SaecacheError: a device ran out of memory inside the block.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        wanted = str(error).split(". ")[:2]  # the rest is about torch's own settings
        raise SaecacheError(f"the device has too little memory ({'. '.join(wanted)}): {fix}") from error


def _container_limit() -> int | None:
    """The memory limit of the control group that the process runs in, as a container or a Slurm job has."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((_CGROUP / name).read_text("ascii"))
        except (OSError, ValueError):  # ValueError: "max"
            continue
    return None
