"""Every selection rule against its plain definition on the whole matrix of exact pre-activations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saecache.train.backends.triton import above as above_module
from saecache.train.backends.triton import candidates, largest, largest_of_batch
from saecache.train.backends.triton.above import above
from saecache.train.backends.triton.exact import exact_matrix
from saecache.train.backends.triton.largest import largest_per_latent, largest_per_row, queue_largest_per_row
from saecache.train.backends.triton.largest_of_batch import largest_of_batch as largest_of_all
from saecache.train.backends.triton.rounding import round_latents
from saecache.train.pairs import Pairs
from saecache.train.selection import reference
from saecache.train.selection.errors import NonFiniteError

from .cases import factors

B, F, D, K = 5, 75, 20, 3


def assert_selects(pairs: Pairs, mask: Tensor, pre: Tensor) -> None:
    rows, latent = mask.nonzero(as_tuple=True)
    assert torch.equal(pairs.rows(), rows)
    assert torch.equal(pairs.latent, latent)
    assert torch.equal(pairs.value, pre[mask])


@pytest.fixture(params=["whole", "random"])
def case(request: pytest.FixtureRequest) -> tuple[Tensor, ...]:
    """x, W, b, and the exact pre-activations; whole numbers tie in many places."""
    x, W, b = factors(B, F, D, whole=request.param == "whole")
    return x, W, b, exact_matrix(x, W, b)


@pytest.fixture(params=["screened", "overflowing", "whole matrix", "matrix in blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to a selection: candidates, too many candidates, and no screen at all."""
    if request.param == "overflowing":
        monkeypatch.setattr(candidates, "ROOM_PER_ROW", 0)
        monkeypatch.setattr(candidates, "ROOM_PER_WANTED", 1)
        monkeypatch.setattr(above_module, "ROOM_PER_ROW", 1)
    if request.param == "matrix in blocks":
        for module in (above_module, largest):
            monkeypatch.setattr(module, "matrix_rows", lambda *_: 3)
    if request.param in ("whole matrix", "matrix in blocks"):
        for module in (above_module, largest, largest_of_batch):
            monkeypatch.setattr(module, "screening_pays", lambda *_: False)
    return str(request.param)


def test_largest_per_row(case: tuple[Tensor, ...], way: str) -> None:
    x, W, b, pre = case
    assert_selects(largest_per_row(x, W, b, K), reference.per_row(pre, K), pre)
    overflown = queue_largest_per_row(x, W, b, K).overflown
    assert bool(overflown.any()) == (way == "overflowing")


def test_largest_of_batch(case: tuple[Tensor, ...], way: str) -> None:
    x, W, b, pre = case
    assert_selects(largest_of_all(x, W, b, K * B), reference.per_batch(pre, K * B), pre)


def test_largest_per_latent(case: tuple[Tensor, ...], way: str) -> None:
    x, W, b, pre = (case[0], case[1][:20].contiguous(), case[2][:20].contiguous(), case[3][:, :20])
    counts = torch.tensor([0, 1, 2, B, 1] + 15 * [0])  # sparse: a latent of all rows, latents of none
    assert_selects(largest_per_latent(x, W, b, counts), reference.per_latent(pre, counts), pre)


def test_above(case: tuple[Tensor, ...], way: str) -> None:
    x, W, b, pre = case
    value = pre.flatten().sort().values[-15].clone()
    each = value + torch.arange(F) % 5 - 2
    assert_selects(above(x, W, b, value, strict=False), pre >= value, pre)
    assert_selects(above(x, W, b, each), pre > each, pre)


def test_the_threshold_itself_is_in_or_out() -> None:
    x, W, b = factors(B, F, D, whole=True)
    pre = exact_matrix(x, W, b)
    value = pre.flatten().sort().values[-15].clone()
    each = value.expand(F).contiguous()
    assert bool((pre == value).any())
    assert_selects(above(x, W, b, value), pre > value, pre)
    assert_selects(above(x, W, b, each, strict=False), pre >= each, pre)


def test_a_threshold_that_is_nan_admits_none_of_its_latent_and_all_of_its_neighbours() -> None:
    x, W, b = factors(3, F, D, whole=True)
    pre, threshold = exact_matrix(x, W, b), torch.full((F,), 20.0)
    threshold[4], threshold[5], threshold[6] = torch.nan, torch.inf, -torch.inf
    assert_selects(above(x, W, b, threshold), pre > threshold, pre)


@pytest.mark.parametrize("k", [1, 40, F])
def test_any_number_of_a_row(k: int) -> None:
    """Few of a row, more than half (negative ones too), all."""
    x, W, b = factors(3, F, D, whole=True)
    pre = exact_matrix(x, W, b)
    assert_selects(largest_per_row(x, W, b, k), reference.per_row(pre, k), pre)


@pytest.mark.parametrize("total", [0, 1, 3 * F - 1, 3 * F])
def test_any_number_of_a_batch(total: int) -> None:
    x, W, b = factors(3, F, D, whole=True)
    pre = exact_matrix(x, W, b)
    assert_selects(largest_of_all(x, W, b, total), reference.per_batch(pre, total), pre)


def test_a_row_alone_selects_as_in_the_batch() -> None:
    x, W, b = factors(B, F, D, whole=False)
    together = largest_per_row(x, W, b, K, rounded_W=round_latents(W))
    for row in (0, B - 1):
        alone = largest_per_row(x[row : row + 1].clone(), W, b, K)
        assert torch.equal(alone.latent, together.slice_rows(row, row + 1).latent)
        assert torch.equal(alone.value, together.slice_rows(row, row + 1).value)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    x, W, b = factors(1, 20, D, whole=True)
    x, counts = x[:rows], torch.full((20,), rows)
    pre = exact_matrix(x, W, b)
    assert_selects(above(x, W, b, torch.tensor(0.0)), pre > 0, pre)
    assert len(largest_per_row(x, W, b, K)) == rows * K
    assert len(largest_of_all(x, W, b, rows * K)) == rows * K
    assert len(largest_per_latent(x, W, b, counts)) == rows * 20


SELECTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Pairs]] = {
    "per row": lambda x, W, b: largest_per_row(x, W, b, K),
    "of batch": lambda x, W, b: largest_of_all(x, W, b, K),
    "above": lambda x, W, b: above(x, W, b, torch.tensor(1.0)),
}


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS.keys())
@pytest.mark.parametrize("where", ["row 1 of the batch", "weights of latent 1 ", "bias of latent 1 "])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_numbers_that_are_not_finite_are_named(
    select: Callable[[Tensor, Tensor, Tensor], Pairs], where: str, value: float
) -> None:
    x, W, b = factors(2, 30, 10, whole=True)
    {"r": x, "w": W, "b": b}[where[0]][1] = value
    with pytest.raises(NonFiniteError, match=where):
        select(x, W, b)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_pre_activations_that_can_overflow_are_refused() -> None:
    x, W, b = factors(2, 30, 10, whole=True)
    with pytest.raises(NonFiniteError, match="can overflow"):
        largest_per_row(x, W, b * 5e37, K)


def test_wrong_arguments_are_refused() -> None:
    x, W, b = factors(2, 30, 10, whole=True)
    with pytest.raises(ValueError, match="k must be from 1"):
        largest_per_row(x, W, b, 31)
    with pytest.raises(ValueError, match="total must be from 0"):
        largest_of_all(x, W, b, 61)
    with pytest.raises(ValueError, match="counts must be int64"):
        largest_per_latent(x, W, b, torch.ones(29, dtype=torch.int64))
    with pytest.raises(ValueError, match="threshold must be float32"):
        above(x, W, b, torch.ones(3))
    with pytest.raises(ValueError, match="b must be float32"):
        above(x, W, b[:3], torch.tensor(1.0))
