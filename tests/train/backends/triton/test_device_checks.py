"""What ``saecache doctor`` checks on a real GPU is right before somebody has one: it passes in the
interpreter.
"""

import pytest
import torch

from saecache.doctor.checks.operations import check_operations
from saecache.doctor.checks.problems import Problem, make_problem
from saecache.doctor.checks.screens import check_screens
from saecache.doctor.checks.training import Place, check_training
from saecache.doctor.checks.triton_kernels import check_kernels
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
    assert_all_passed(notes, at_least=18)


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
