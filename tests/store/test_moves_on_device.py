"""The script for a real GPU is right before somebody has one: its checks pass on a pretended device."""

from pathlib import Path

import pytest
import torch

from saecache.common.transfers import TRANSFERS
from saecache.store.encoding import device

from ..pretend_transfers import pretend
from . import moves_on_device


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_its_checks_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(moves_on_device, "DEVICE", "cpu")
    monkeypatch.setitem(TRANSFERS, "cpu", pretend())
    monkeypatch.setattr(device, "_has_kernel", lambda _device: True)
    found = [moves_on_device.check_arithmetic(500), moves_on_device.check_slots(1000, 7)]
    found += [moves_on_device.check_encoder(70, "float16", True, torch.bfloat16, 20)]
    found += [moves_on_device.check_encoder(70, "float32", False, torch.float16, 20)]
    monkeypatch.setattr(device, "encodes_rows", lambda *_: False)  # the interpreter is too slow for all rows
    found += [moves_on_device.check_cache(tmp_path)]
    assert all(all(checks.values()) for checks in found)
    assert len(found[-1]) == 80
