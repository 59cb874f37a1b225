"""What torchrun and srun say in the environment of each process that they start. Imports no torch."""

import os

from ..common.errors import UsageError

TIMEOUT_VARIABLE = "SAECACHE_TIMEOUT"
TIMEOUT_SECONDS = 1800.0
STILL_VARIABLE = "SAECACHE_STILL_MINUTES"
STILL_MINUTES = 10.0

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


def find_placement() -> tuple[int, int, int, int] | None:
    """Rank, number of processes, and both on this machine; None for a process alone."""
    for names in (_TORCHRUN, _SRUN):
        rank, size, local_rank, local_size = (os.environ.get(name, "") for name in names)
        if not (rank and size):
            continue
        numbers = [rank, size, local_rank or "0", local_size.partition("(")[0] or "1"]
        try:
            r, n, local_r, local_n = (int(number) for number in numbers)
        except ValueError:
            raise UsageError(
                f"{names[0]} to {names[-1]} should be whole numbers, got {', '.join(numbers)}: start "
                "saecache with torchrun or srun, or remove these variables"
            ) from None
        if not 0 <= r < n:
            raise UsageError(f"{names[0]}={r} must be from 0 to {names[1]}={n} less 1")
        return None if n == 1 else (r, n, local_r, local_n)
    return None


def check_meeting_point() -> None:
    """Make sure that the environment says where the processes meet."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} must say where the processes meet. torchrun sets them; with srun: "
            "export MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) MASTER_PORT=29500"
        )


def store_is_in_first_process() -> bool:
    """Whether the first process holds what all share; else torchrun does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)


def timeout_seconds() -> float:
    """How long a process waits for the others to start."""
    return _duration(TIMEOUT_VARIABLE, TIMEOUT_SECONDS, "seconds")


def still_seconds() -> float:
    """How long a process makes no progress until it warns of that."""
    return 60 * _duration(STILL_VARIABLE, STILL_MINUTES, "minutes")


def _duration(variable: str, default: float, unit: str) -> float:
    text = os.environ.get(variable, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise UsageError(f"{variable} must be a number of {unit} above 0, got {text!r}")
    return number
