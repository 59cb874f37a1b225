"""The checks of what moves to a GPU are right before somebody has one: they pass on a pretended device, and
they find one that moves wrong bytes.
"""

from pathlib import Path

import pytest
import torch

from saecache.common import transfers
from saecache.doctor.checks import moves
from saecache.doctor.notes import Notes
from saecache.store.encoding import device

from ..pretend_transfers import pretend

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transfers.TRANSFERS, "cpu", pretend())


@pytest.fixture
def notes() -> Notes:
    return Notes(name="moves", title="")


def test_all_pass(notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "SLOT_BYTES", 1000)
    assert moves.why_not(CPU) == ""
    moves.check_moves(notes, (70,), CPU, tmp_path)
    assert [check for check in notes.checks if not check.passed] == []
    assert len(notes.checks) == 3 + 2 + 96
    assert [left.name for left in notes.left_out] == ["rows are encoded there"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_encoded_rows(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = moves.RecordLayout(70, "float16")
    monkeypatch.setattr(moves, "MODEL_DTYPES", (torch.bfloat16,))
    monkeypatch.setattr(device, "_TESTED_ROWS", 14)  # the interpreter is slow
    moves.check_encoder(notes, "rows", layout, True, CPU)
    assert [check.passed for check in notes.checks] == [True]


def test_a_copy_of_wrong_bytes_is_found(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    send = moves.Slot.send

    def send_less(slot: moves.Slot, num_bytes: int) -> None:
        send(slot, num_bytes - 1)

    monkeypatch.setattr(moves.Slot, "send", send_less)
    moves.check_slots(notes, CPU, 1000)
    assert [check.passed for check in notes.checks] == [False, True]


def test_a_device_without_a_second_stream_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(transfers.TRANSFERS, "cpu")
    assert "no second stream" in moves.why_not(CPU)
