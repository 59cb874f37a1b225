"""The script for a real GPU is right before somebody has one: its checks pass in the interpreter."""

from typing import Any

import pytest
import torch

from . import on_device


def numbers_in(found: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every number of a report, with the names that lead to it."""
    if isinstance(found, dict):
        return [pair for name, value in found.items() for pair in numbers_in(value, f"{path} / {name}")]
    if isinstance(found, list):
        return [pair for value in found for pair in numbers_in(value, path)]
    return [(path, found)]


@torch.no_grad()
def test_its_checks_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "DEVICE", "cpu")
    monkeypatch.setattr(on_device, "DEADLINE_SECONDS", float("inf"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    on_device.check(on_device.Case(4, 24, 10, 2, whole=False), "random")
    assert on_device.report["errors"] == {}
    found = numbers_in(on_device.report["checks"])
    assert len(found) > 30
    for place, value in found:
        if place.endswith("/ equal"):  # to the last bit, which only whole numbers are
            continue
        assert value is True or (value is not False and value < 1e-5), f"{place}: {value}"
