"""How much memory there is, as Linux, a container and other systems say it."""

from pathlib import Path

import pytest
import torch

from saecache.common import memory
from saecache.common.errors import SaecacheError, UsageError
from saecache.common.memory import available_memory, check_memory, explain_out_of_memory

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up /proc/meminfo with 3 MiB available and 1 MiB of swap, and an empty control group."""
    (tmp_path / "meminfo").write_text(
        "MemTotal: 8192 kB\nMemAvailable:  3072 kB\nSwapFree: 1024 kB\nHugePages_Total: 0\n"
    )
    monkeypatch.setattr(memory, "_PROC", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_available_memory_and_swap(system: Path) -> None:
    assert available_memory(CPU) == 4 << 20
    check_memory(4 << 20, CPU, "an SAE", "take fewer")
    with pytest.raises(
        UsageError, match="an SAE takes 4 MiB of memory, and 4 MiB are available on cpu: take"
    ):
        check_memory((4 << 20) + 1, CPU, "an SAE", "take fewer")


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_limit_of_a_container(system: Path, name: str) -> None:
    (system / name).parent.mkdir(exist_ok=True)
    (system / name).write_text("max\n")
    assert available_memory(CPU) == 4 << 20
    (system / name).write_text(f"{1 << 20}\n")
    assert available_memory(CPU) == 1 << 20


def test_a_system_that_does_not_say(system: Path) -> None:
    (system / "meminfo").write_text("MemTotal: 8192 kB\n")
    assert available_memory(CPU) is None
    check_memory(1 << 60, CPU, "an SAE", "take fewer")


def test_a_full_device_says_what_to_lower() -> None:
    message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB of"
    with (
        pytest.raises(SaecacheError, match=r"Tried to allocate 2\.00 GiB.*: lower batch_rows") as caught,
        explain_out_of_memory("lower batch_rows"),
    ):
        raise torch.OutOfMemoryError(message)
    assert "capacity" not in str(caught.value)
