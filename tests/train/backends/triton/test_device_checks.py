"""What ``saecache doctor`` checks on a real GPU is right before somebody has one: it passes in the
interpreter.
"""

from collections.abc import Callable

import pytest
import torch

from saecache.configs import load_config
from saecache.doctor import DoctorConfig
from saecache.doctor.checks.operations import check_operations
from saecache.doctor.checks.problems import Problem, make_problem
from saecache.doctor.checks.screens import check_screens
from saecache.doctor.checks.training import Place, check_training
from saecache.doctor.checks.triton_kernels import check_kernels
from saecache.doctor.measurements import triton_kernels as kernel_times
from saecache.doctor.notes import Notes
from saecache.train.backends.triton import gradients

CPU = torch.device("cpu")


@pytest.fixture
def notes() -> Notes:
    return Notes(name="section", title="")


@pytest.fixture(params=[True, False], ids=["whole numbers", "random"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return make_problem(4, 24, 10, 2, whole=request.param, device=CPU, backend="triton")


def assert_all_passed(notes: Notes, *, at_least: int) -> None:
    assert [check for check in notes.checks if not check.passed] == []
    assert len(notes.checks) >= at_least


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter, about NaN
def test_operations_pass(notes: Notes, problem: Problem) -> None:
    check_operations(notes, problem)
    assert_all_passed(notes, at_least=20)


def test_kernels_pass(notes: Notes, problem: Problem) -> None:
    check_kernels(notes, problem)
    assert_all_passed(notes, at_least=16)


def test_every_kernel_can_be_timed(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is called once, as on a GPU. CUDA graphs are not there."""

    def call(run: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
        run()
        return [float(rounds)]

    monkeypatch.setattr(kernel_times, "milliseconds", call)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    monkeypatch.setattr(kernel_times._Kernels, "whole_step_as_graph", lambda self: None)
    overrides = ["cpu.latents=[70]", "cpu.rows=5", "cpu.width=20", "cpu.k=2"]
    sizes = load_config(DoctorConfig, "quick", overrides, kinds=("doctor",)).cpu
    kernel_times.measure_kernels(notes, sizes, CPU)
    assert notes.checks == [], "no group failed"
    assert len(notes.figures) > 30


def test_the_screen_passes(notes: Notes) -> None:
    check_screens(notes, "triton", CPU, [10, 32])
    assert_all_passed(notes, at_least=2)


def test_a_kernel_that_is_wrong_is_found(
    notes: Notes, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gradients.weight_gradients

    def wrong(*arguments: object, **options: object) -> None:
        right(*arguments, **options)  # type: ignore[arg-type]
        arguments[-1].add_(1)  # type: ignore[attr-defined]

    monkeypatch.setattr(gradients, "weight_gradients", wrong)
    check_kernels(notes, problem)
    failed = [check.name for check in notes.checks if not check.passed]
    assert failed == [f"{problem.label}: weight_gradients, bias"]


def test_training_runs_pass(notes: Notes) -> None:
    """As those of the compiled loops. The steps of all kinds are in test_engine.py."""
    places = Place(CPU, "triton"), Place(CPU, "compiled")
    check_training(notes, *places, rows=6, latents=40, width=12, kinds=["topk", "batch_topk"])
    assert_all_passed(notes, at_least=8)
