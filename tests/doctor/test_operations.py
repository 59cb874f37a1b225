"""The checks of operations: right backends pass them, and each wrong operation is found."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saecache.configs import load_config
from saecache.doctor import DoctorConfig
from saecache.doctor.checks import operations
from saecache.doctor.checks.operations import check_operations
from saecache.doctor.checks.problems import Problem, compare, compare_selection, make_problem
from saecache.doctor.checks.screens import check_screens
from saecache.doctor.checks.training import Place, check_training
from saecache.doctor.notes import Notes
from saecache.train.backends.choice import load_backend
from saecache.train.backends.protocol import Backend
from saecache.train.pairs import Pairs
from saecache.train.variants import VARIANTS

CPU = torch.device("cpu")
SIZES = load_config(DoctorConfig, "quick", kinds=("doctor",)).checks.operations
OPERATIONS = [name for name in vars(Backend) if not name.startswith("_")]


def problem(size: tuple[int, int, int, int], *, whole: bool, backend: str = "compiled") -> Problem:
    return make_problem(*size, whole=whole, device=CPU, backend=backend)


def failed(notes: Notes) -> list[str]:
    return [check.name for check in notes.checks if not check.passed]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("backend", "whole"), [("compiled", True), ("compiled", False), ("plain", True)], ids=str
)
def test_right_backends_pass(backend: str, whole: bool, size: tuple[int, int, int, int]) -> None:
    notes = Notes(name="operations", title="")
    check_operations(notes, problem(size, whole=whole, backend=backend))
    assert failed(notes) == []
    assert len(notes.checks) >= 24


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_that_is_a_little_wrong_is_found(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = load_backend("compiled")
    wrong = SimpleNamespace(**{name: getattr(right, name) for name in OPERATIONS})
    setattr(wrong, operation, spoiled(operation, getattr(right, operation)))
    plain = load_backend("plain")
    monkeypatch.setattr(operations, "load_backend", {"wrong": wrong, "plain": plain}.__getitem__)
    notes = Notes(name="operations", title="")
    check_operations(notes, problem((20, 90, 12, 3), whole=False, backend="wrong"))
    assert any(operation in name for name in failed(notes)), failed(notes)


def spoiled(operation: str, right: Any) -> Any:
    """The operation with one number of its result changed by a ten-thousandth."""

    def last_dropped(*arguments: Any) -> Any:
        found = right(*arguments)
        pairs = found[0] if isinstance(found, tuple) else found
        others = torch.arange(len(pairs)) < len(pairs) - 1
        return (pairs.keep(others), found[1]) if isinstance(found, tuple) else pairs.keep(others)

    def changed(*arguments: Any, **options: Any) -> Any:
        result = right(*arguments, **options)
        target = result[0] if isinstance(result, tuple) else result
        if operation in (
            "accumulate_by_latent",
            "add_decoded",
            "weight_gradients",
            "adam_step",
        ):  # which write
            target = arguments[0 if operation == "adam_step" else -1]
        place = target.abs().argmax()
        target.view(-1)[place] += target.view(-1)[place] * 1e-4 if target.is_floating_point() else 1
        return result

    return last_dropped if operation.startswith("largest") or operation == "above" else changed


def test_an_operation_that_fails_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(load_backend("compiled"), "above", fail)
    notes = Notes(name="operations", title="")
    check_operations(notes, problem((20, 90, 12, 3), whole=True))
    assert len(failed(notes)) == 2
    assert all("above" in name for name in failed(notes))
    assert len(notes.checks) >= 24


def test_comparisons() -> None:
    one = torch.tensor([1.0, 2.0])
    assert compare(one, one.double(), whole=True) == (True, "")
    assert not compare(one, one + 1e-6, whole=True)[0]
    assert compare(one, one + 1e-6)[0]
    assert not compare(one, one * 1.001)[0]
    assert not compare(one, torch.tensor([1.0]))[0]
    assert not compare(torch.tensor([torch.nan, 2.0]), one)[0]
    pre = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    pairs = Pairs.from_dense(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
    assert compare_selection(pairs, pre > 2, pre) == (True, "")
    assert "1 of 2 values" in compare_selection(pairs, pre > 2, pre + torch.tensor([[1.0, 0], [0, 0]]))[1]
    assert "1 places differ" in compare_selection(pairs, pre >= 2, pre)[1]


@pytest.mark.parametrize("backend", ["compiled", "plain"])
def test_screens(backend: str) -> None:
    notes = Notes(name="operations", title="")
    check_screens(notes, backend, CPU, [100])
    assert failed(notes) == []
    assert len(notes.checks) + len(notes.left_out) == (3 if backend == "compiled" else 0)


def test_a_screen_that_breaks_its_bounds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from saecache.train.backends.compiled.selection import cheapest_product

    monkeypatch.setattr(cheapest_product, "keeps_bounds", lambda product, width: product == "float32")
    notes = Notes(name="operations", title="")
    check_screens(notes, "compiled", CPU, [100])
    assert failed(notes) == ["the bfloat16 screen keeps its bounds"]
    assert notes.left_out[0].name == "the int8 screen"


def test_training_runs_of_all_kinds_pass() -> None:
    notes = Notes(name="training", title="")
    places = Place(CPU, "compiled"), Place(CPU, "plain")
    check_training(notes, *places, rows=32, latents=96, width=16)
    assert failed(notes) == []
    assert len(notes.checks) == 4 * len(VARIANTS)


def test_training_on_a_wrong_backend_is_found(broken_backend: str) -> None:
    notes = Notes(name="training", title="")
    check_training(notes, Place(CPU, broken_backend), Place(CPU, "compiled"), rows=32, latents=96, width=16)
    assert "broken: topk: losses" in failed(notes)
    assert "broken: batch_topk" in failed(notes)
