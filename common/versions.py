"""Versions of the software that a file was made with."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def package_version(name: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def software_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python, and of those of ``packages`` that are installed."""
    found = {name: package_version(name) for name in packages}
    return {"python": platform.python_version()} | {n: v for n, v in found.items() if v is not None}
