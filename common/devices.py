"""The device that a stage runs on."""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(name: str, *, float64: bool = False, local_rank: int | None = None) -> "torch.device":
    """The torch device called ``name``: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``.

    ``auto`` is CUDA where there is one, then MPS, then the CPU.

    Args:
        float64: the stage keeps sums in float64, which MPS does not have: ``auto`` then passes over MPS.
        local_rank: the number of this process among those of a run on this machine: ``auto`` and ``cuda`` are
            then the GPU of that number, which becomes torch's current one. None for a process alone.

    Raises:
        UsageError: this machine, or this build of torch, has no such device, or it lacks float64.
    """
    import torch

    if local_rank is not None and torch.cuda.is_available() and name in ("auto", "cuda"):
        name = f"cuda:{local_rank % torch.cuda.device_count()}"  # several processes may share one
        torch.cuda.set_device(name)
    if name == "auto":
        return torch.device(next(one for one in _available() if one != "mps" or not float64))
    try:
        device = torch.empty(0, device=name, dtype=torch.float64 if float64 else torch.float32).device
        if device.type == "meta":
            raise TypeError("its tensors hold no numbers")
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ImportError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"device={name!r} cannot be used here: {reason}; available: {', '.join(_available())}"
        ) from None
    return device


@cache
def runs_triton(device: "torch.device") -> bool:
    """Whether Triton is installed and compiles our kernels for this device.

    That is an NVIDIA GPU with tensor cores for bfloat16 (sm_80 or newer).
    """
    import torch

    if device.type != "cuda" or find_spec("triton") is None or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def device_name(device: "torch.device") -> str:
    """The hardware's own name where torch knows it, else the device type."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _available() -> list[str]:
    """Device types that torch finds here, the fastest first."""
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, there in found.items() if there]
