"""The disk of a folder, the places where saecache keeps files, and whether credentials are there."""

import os
from pathlib import Path

from ...common.counts import format_bytes
from ...store.disk_space import free_space
from ...store.remote.downloads.settings import FOLDER_VARIABLE, default_folder
from ...store.remote.places.services import SERVICES, Service, hugging_face_folder
from ...store.remote.team import VARIABLE as TEAM_VARIABLE
from ..notes import Notes
from ..timing import timed

SPEED_BYTES = 64 << 20  # written and read; at most a tenth of what is free
BLOCK_BYTES = 4 << 20
MOST_FILES = 100_000  # looked at in one folder


def describe_storage(notes: Notes, folder: Path, temporary: Path) -> None:
    """The section ``storage``: of ``folder``, in which ``temporary`` is a folder for files of our own."""
    _, free = free_space(folder)
    notes.find("folder", f"{show_path(folder)}, {format_bytes(free)} free")
    measure_disk(notes, temporary / "speed", min(SPEED_BYTES, free // 10))
    for name, place, why in (
        ("download cache", default_folder(), FOLDER_VARIABLE),
        ("caches and scratch", Path("caches"), "--out and --scratch of a harvest"),
        ("models and datasets", hub_folder(), "HF_HOME"),
    ):
        notes.find(name, f"{show_path(place)} ({why}): {describe_size(place)}")
    team = [place for place in os.environ.get(TEAM_VARIABLE, "").replace(",", " ").split() if place]
    notes.find("team", f"{len(team)} locations in {TEAM_VARIABLE}" if team else f"{TEAM_VARIABLE} is not set")
    for service in SERVICES.values():
        notes.find(f"credentials for {service.title}", credentials_found(service))


def measure_disk(notes: Notes, path: Path, num_bytes: int) -> None:
    """Write a file until it is durable, and read it, past the system's file cache where that is possible."""
    if num_bytes < BLOCK_BYTES:
        notes.leave_out("speed of the disk", "it is nearly full")
        return
    block = os.urandom(BLOCK_BYTES)
    blocks = num_bytes // BLOCK_BYTES

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(blocks):
                file.write(block)
            os.fsync(file.fileno())

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass

    gigabytes = blocks * BLOCK_BYTES / 1e9
    notes.measure("disk", "write until durable", "GB/s", [gigabytes / timed(write).seconds])
    dropped = drop_from_file_cache(path)
    name = "read" if dropped else "read, perhaps from the system's file cache"
    notes.measure("disk", name, "GB/s", [gigabytes / timed(read).seconds])
    path.unlink()


def drop_from_file_cache(path: Path) -> bool:
    """Ask the system to forget the content of a durable file; False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def describe_size(folder: Path) -> str:
    """How many bytes the files below ``folder`` have."""
    if not folder.is_dir():
        return "not there"
    total = files = 0
    for place, _, names in os.walk(folder):
        for name in names:
            files += 1
            if files > MOST_FILES:
                return f"more than {MOST_FILES:,} files, {format_bytes(total)}"
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:  # removed meanwhile, or not ours to look at
                continue
    return f"{files:,} files, {format_bytes(total)}"


def show_path(path: Path) -> str:
    """``path`` with ``~`` for the home folder, whose name is often a person's."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and path != home else str(path)


def hub_folder() -> Path:
    """Where the Hugging Face libraries keep what they download."""
    named = os.environ.get("HF_HUB_CACHE")
    return Path(named) if named else hugging_face_folder() / "hub"


def credentials_found(service: Service) -> str:
    """The variables and files of ``service`` that are there; never what they hold."""
    found = [name for name in service.variables if os.environ.get(name)]
    found += [show_path(path) for path in service.files() if path.is_file()]
    return ", ".join(found) or "none found"
