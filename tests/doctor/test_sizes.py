"""Sizes follow the memory and the time that there are."""

import pytest
import torch

from saecache.configs import load_config
from saecache.doctor import DoctorConfig, trainees
from saecache.doctor.config import Sizes
from saecache.doctor.measurements import harvest, steps
from saecache.doctor.notes import Notes
from saecache.doctor.timing import Cost

CPU = torch.device("cpu")


@pytest.fixture
def sizes() -> Sizes:
    overrides = ["cpu.rows=4096", "cpu.width=8"]
    return load_config(DoctorConfig, "quick", overrides, kinds=("doctor",)).cpu


def test_rows_are_halved_until_a_kind_has_time(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of an eighth of the rows takes 1 s here: 8 s of all, 24 s a round, three rounds."""
    monkeypatch.setattr(steps, "timer", lambda work, device: lambda: Cost(1.0, 1.0))
    assert steps.affordable_rows(sizes, 64, CPU, 72.0) == 4096
    assert steps.affordable_rows(sizes, 64, CPU, 71.9) == 2048
    assert steps.affordable_rows(sizes, 64, CPU, 20.0) == 1024
    assert steps.affordable_rows(sizes, 64, CPU, 0.0) == steps.SMALLEST_ROWS


def test_tokens_are_as_many_as_a_round_has_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvest, "bare_seconds", lambda model, tokens, batch, device: tokens / 1000)
    model = torch.nn.Identity()
    assert harvest.affordable_tokens(model, 5000, 8, CPU, 20.0) == 5000
    assert harvest.affordable_tokens(model, 5000, 8, CPU, 10.0) == 2500
    assert harvest.affordable_tokens(model, 5000, 8, CPU, -1.0) == harvest.LEAST_TOKENS


def test_latents_are_halved_until_half_of_the_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bytes for each weight of two matrices, and some rows."""
    monkeypatch.setattr(trainees, "available_memory", lambda device: 2 * (16 * 2 * 8192 * 100 + 2_000_000))
    assert trainees.fitting_latents(8192, 64, 100, CPU) == 8192
    assert trainees.fitting_latents(65536, 64, 100, CPU) == 8192
    monkeypatch.setattr(trainees, "available_memory", lambda device: 0)
    assert trainees.fitting_latents(65536, 64, 100, CPU) == 1024
    monkeypatch.setattr(trainees, "available_memory", lambda device: None)
    assert trainees.fitting_latents(65536, 64, 100, CPU) == 65536


def test_a_kind_that_is_impossible_at_a_size_is_left_out(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feature Choice gives every latent a row: so few rows of a busy machine are no failure."""
    monkeypatch.setattr(steps, "VARIANTS", {"feature_choice": None})
    notes = Notes(name="steps", title="")
    small = sizes.model_copy(update={"rows": 4, "k": 2, "latents": (64,), "rounds": 1})
    steps.measure_steps(notes, small, CPU, "compiled")
    assert notes.checks == []
    assert "gives less than one row" in notes.left_out[0].why
