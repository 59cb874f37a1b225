"""The examination: which sections there are, on which device and backends, in a temporary folder."""

import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from ..common.devices import choose_device, device_name
from ..common.outputs import check_folder_output
from ..common.versions import package_version
from ..train.backends.choice import preferences, use_backend
from .checks.moves import check_moves, why_not
from .checks.operations import check_operations
from .checks.problems import Problem, make_problem
from .checks.screens import check_screens
from .checks.training import Place, check_training
from .config import Checks, DoctorConfig, Sizes
from .findings.devices import check_chosen_backend, chosen_backend, describe_devices
from .findings.machine import cpu_facts, describe_machine, processor_name
from .findings.storage import describe_storage
from .measurements.feed import measure_feed
from .measurements.harvest import measure_harvest
from .measurements.peers import measure_peers
from .measurements.steps import measure_steps
from .measurements.writer import measure_writer
from .notes import Notes, Say
from .report import Report
from .sections import Part, run_sections
from .timing import waiting_for


def examine(config: DoctorConfig, command: str = "saecache doctor", say: Say | None = None) -> Report:
    """Examine this machine. A KeyboardInterrupt ends it early: the report then has what was done.

    Args:
        command: what was typed, for the report. say: shows a line of progress; stderr when None.

    Raises:
        UsageError: there is no such device or backend, or nothing can be written into the folder.
    """
    device = choose_device(config.device, float64=True)
    check_chosen_backend(device)
    folder = Path(config.folder)
    check_folder_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    say = say or progress_lines()
    began, load = time.monotonic(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(
        prefix="saecache-doctor-", dir=folder, ignore_cleanup_errors=True
    ) as name:
        sections, interrupted = run_sections(
            make_parts(config, device, folder, Path(name)),
            config.limit_seconds,
            say=say,
            wait=waiting_for(device),
        )
    return Report(
        saecache=package_version("saecache") or "unknown",
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        device=processor_name(cpu_facts()) if device.type == "cpu" else device_name(device),
        backend=chosen_backend(device),
        load=None if load is None else round(load, 1),
        seconds=round(time.monotonic() - began, 1),
        interrupted=interrupted,
        settings={name: str(value) for name, value in sizes_of(config, device)},
        sections=tuple(sections),
    )


def sizes_of(config: DoctorConfig, device: torch.device) -> Sizes:
    """The sizes for this kind of device."""
    return config.cpu if device.type == "cpu" else config.gpu


def make_parts(config: DoctorConfig, device: torch.device, folder: Path, temporary: Path) -> tuple[Part, ...]:
    """All sections, in order: what costs little comes first, so that a run that is cut short has it."""
    sizes, seconds, checks = sizes_of(config, device), config.seconds, config.checks
    backends = backends_to_check(device)
    no_kernels = "" if "triton" in backends else "it is about Triton kernels, which no GPU here can run"
    no_times = no_kernels or ("" if device.type == "cuda" else "kernels are timed on a GPU only")
    return (
        Part(
            name="machine", title="Machine", seconds=seconds.machine, work=describe_machine,
            uses_device=False,
        ),
        Part(name="devices", title="Devices", seconds=seconds.devices, work=describe_devices),
        Part(
            name="storage", title="Disk, caches and credentials", seconds=seconds.storage,
            work=partial(describe_storage, folder=folder, temporary=temporary), uses_device=False,
        ),
        Part(
            name="operations", title="Operations of the backend against their definitions",
            seconds=seconds.operations,
            work=partial(check_backends, checks=checks, backends=backends, device=device),
        ),
        Part(
            name="kernels", title="Triton kernels against their definitions", seconds=seconds.kernels,
            work=partial(check_triton, checks=checks, device=device), not_here=no_kernels,
        ),
        Part(
            name="training", title="Training runs on the device and on the CPU", seconds=seconds.training,
            work=partial(compare_with_cpu, checks=checks, backends=backends, device=device),
        ),
        Part(
            name="moves", title="Batches and rows between the device and main memory",
            seconds=seconds.moves, not_here=why_not(device),
            work=partial(check_moves, widths=checks.encoded_widths, device=device, folder=temporary),
        ),
        Part(
            name="steps", title="Training steps", seconds=seconds.steps,
            work=partial(measure_backends, sizes=sizes, backends=backends, device=device),
        ),
        Part(
            name="kernel_times", title="Times of the Triton kernels", seconds=seconds.kernel_times,
            work=partial(measure_triton, sizes=sizes, device=device), not_here=no_times,
        ),
        Part(
            name="writer", title="Writing a cache", seconds=seconds.writer,
            work=partial(measure_writer, sizes=sizes, folder=temporary), uses_device=False,
        ),
        Part(
            name="feed", title="Reading a cache", seconds=seconds.feed,
            work=partial(measure_feed, sizes=sizes, device=device, folder=temporary),
        ),
        Part(
            name="harvest", title="Harvest", seconds=seconds.harvest,
            work=partial(measure_harvest, sizes=sizes, device=device, folder=temporary),
        ),
        Part(
            name="peers", title="Other packages", seconds=seconds.peers,
            work=partial(measure_peers, sizes=sizes, device=device),
        ),
    )  # fmt: skip


def backends_to_check(device: torch.device) -> list[str]:
    """The backend that computes on ``device``, and Triton's where it could."""
    chosen = chosen_backend(device)
    serves = {name for name, (_, there) in preferences(torch.empty(0, device=device)).items() if there}
    return [chosen, *({"triton"} & serves - {chosen})]


def check_backends(notes: Notes, checks: Checks, backends: list[str], device: torch.device) -> None:
    """The section ``operations``."""
    for name in backends:
        problems = make_problems(checks, name, device)
        for label in notes.each([f"{name}: screens", *problems]):
            if label in problems:
                check_operations(notes, problems[label])
            else:
                check_screens(notes, name, device, checks.screen_widths)


def check_triton(notes: Notes, checks: Checks, device: torch.device) -> None:
    """The section ``kernels``."""
    from .checks.triton_kernels import check_kernels

    problems = make_problems(checks, "triton", device)
    for label in notes.each(problems):
        check_kernels(notes, problems[label])


def make_problems(checks: Checks, backend: str, device: torch.device) -> dict[str, Problem]:
    """All problems for a backend by their label."""
    sizes = [(size, whole) for whole in (True, False) for size in checks.operations]
    problems = [make_problem(*size, whole=whole, device=device, backend=backend) for size, whole in sizes]
    return {problem.label: problem for problem in problems}


def compare_with_cpu(notes: Notes, checks: Checks, backends: list[str], device: torch.device) -> None:
    """The section ``training``."""
    rows, latents, width = checks.training
    for name in backends:
        here, there = Place(device, name), reference_place(device, name)
        check_training(notes, here, there, rows=rows, latents=latents, width=width)


def reference_place(device: torch.device, backend: str) -> Place:
    """What a backend on a device is compared with: the CPU's own backend, or on the CPU the other one."""
    cpu = torch.device("cpu")
    other = "plain" if device.type == "cpu" and backend == "compiled" else "compiled"
    if other == "compiled" and find_spec("numba") is None:
        other = "plain"
    return Place(cpu, other)


def measure_backends(notes: Notes, sizes: Sizes, backends: list[str], device: torch.device) -> None:
    """The section ``steps``."""
    for name in backends:
        with use_backend(name):
            measure_steps(notes, sizes, device, name)


def measure_triton(notes: Notes, sizes: Sizes, device: torch.device) -> None:
    """The section ``kernel_times``."""
    from .measurements.triton_kernels import measure_kernels

    measure_kernels(notes, sizes, device)


def progress_lines() -> Say:
    """A function that prints a line on stderr, with the seconds since now."""
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    return say
