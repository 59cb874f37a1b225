"""The devices that torch finds, and the backend that would compute on each of them."""

import subprocess
from pathlib import Path

import torch

from ...common.counts import format_bytes
from ...common.devices import device_name
from ...train.backends.choice import VARIABLE, forced_backend, load_backend, name_of_backend, preferences
from ..notes import Notes

DRIVER_VERSION = Path("/sys/module/nvidia/version")


def describe_devices(notes: Notes) -> None:
    """The section ``devices``."""
    notes.find("CUDA of torch", torch.version.cuda or "none: this build of torch is for CPUs")
    if torch.version.hip:
        notes.find("ROCm of torch", torch.version.hip)
    if torch.cuda.is_available():
        notes.find("NVIDIA driver", driver_version() or "unknown")
    for device in devices():
        notes.find(str(device), describe_device(device))
        notes.find(f"backend on {device}", explain_choice(device))


def devices() -> list[torch.device]:
    """All devices that can be trained on; MPS has no float64, so that it can only be harvested on."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return found


def describe_device(device: torch.device) -> str:
    """What the hardware says of itself."""
    if device.type != "cuda":
        return f"{torch.get_num_threads()} threads"
    facts = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return (
        f"{device_name(device)}, sm_{facts.major}{facts.minor}, {facts.multi_processor_count} "
        f"multiprocessors, {format_bytes(free)} of {format_bytes(total)} free"
    )


def driver_version() -> str | None:
    """The version of the NVIDIA kernel module; None where no file and no command tells it."""
    try:
        return DRIVER_VERSION.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return (answer.stdout.splitlines() or [""])[0].strip() or None


def chosen_backend(device: torch.device) -> str:
    """The name of the backend that computes on float32 tensors of ``device``."""
    return name_of_backend(torch.empty(0, device=device))


def check_chosen_backend(device: torch.device) -> None:
    """Refuse a backend that SAECACHE_BACKEND names and that does not exist.

    Raises:
        UsageError: there is none of that name.
    """
    name = chosen_backend(device)
    if name not in preferences(torch.empty(0, device=device)):
        load_backend(name)


def explain_choice(device: torch.device) -> str:
    """Which backend computes on ``device``, why, and whether it can be loaded."""
    name = chosen_backend(device)
    known = preferences(torch.empty(0, device=device))
    if forced_backend():
        why = f"{VARIABLE} names it"
    else:
        serving = [f"{other} {rank}" for other, (rank, serves) in known.items() if serves]
        idle = [other for other, (_, serves) in known.items() if not serves]
        why = f"the first by preference of those that serve the device: {', '.join(serving)}"
        why += f"; not for it: {', '.join(idle)}" if idle else ""
    try:
        load_backend(name)
    except Exception as error:  # noqa: BLE001 - a library that is absent or broken
        why += f"; it CANNOT BE LOADED: {type(error).__name__}: {error}"
    return f"{name} ({why})"
