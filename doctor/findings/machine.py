"""Processor, memory and software."""

import os
import platform
from pathlib import Path

from ...common.cores import usable_cores
from ...common.counts import format_bytes
from ...common.versions import software_versions
from ..notes import Notes

PACKAGES = ("saecache", "torch", "triton", "numba", "numpy", "transformers", "zarr", "obstore")
INSTRUCTIONS = {  # flag of /proc/cpuinfo -> what it is called; those that decide which product screens
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "bf16": "NEON BF16",
    "sve": "SVE",
}


def describe_machine(notes: Notes) -> None:
    """The section ``machine``."""
    facts = cpu_facts()
    notes.find("processor", processor_name(facts))
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    notes.find(
        "instructions", ", ".join(name for flag, name in INSTRUCTIONS.items() if flag in flags) or "unknown"
    )
    notes.find("cores", f"{len(usable_cores())} of {os.cpu_count()} may be used")
    notes.find("memory", describe_memory())
    notes.find("system", f"{platform.system()} {platform.machine()}")
    for name, version in software_versions(PACKAGES).items():
        notes.find(name, version)


def cpu_facts() -> dict[str, str]:
    """Label and value of each line of /proc/cpuinfo, of the last processor; none elsewhere than on Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {label.strip(): value.strip() for label, value in pairs}


def processor_name(facts: dict[str, str]) -> str:
    """The model's name, with family and model number where the system gives them."""
    name = facts.get("model name") or platform.processor() or platform.machine()
    if family := facts.get("cpu family"):
        name += f" (family {family}, model {facts.get('model')})"
    return name


def total_memory_bytes() -> int:
    """The memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe_memory() -> str:
    """All memory, and what a process can still take."""
    import torch

    from ...common.memory import available_memory

    available = available_memory(torch.device("cpu"))
    left = "" if available is None else f", {format_bytes(available)} available"
    return f"{format_bytes(total_memory_bytes())}{left}"
