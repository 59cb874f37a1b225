"""The processor cores that this process may use."""

import os


def usable_cores() -> list[int]:
    """Numbers of the cores that the scheduler gives to this process: a job may have fewer than there are.

    Where the system does not say, all of them.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
