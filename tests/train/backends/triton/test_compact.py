"""The largest of a list of candidates, and of a matrix, move together in their order."""

import pytest
import torch
from torch import Tensor

from saecache.train.backends.triton import compact
from saecache.train.backends.triton.candidates import Candidates
from saecache.train.pairs import Pairs
from saecache.train.selection import reference

ROWS, COLUMNS = 20, 35


@pytest.fixture(autouse=True, params=[64, 1024])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 700 numbers are in 11 blocks, or in one that they do not fill."""
    monkeypatch.setattr(compact, "BLOCK", request.param)


def scores() -> Tensor:
    """Many ties, zeros of both signs and infinities; row 3 is one number."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-5, 6, (ROWS, COLUMNS), generator=generator) * 0.7
    values[::2] += torch.randn(ROWS // 2, COLUMNS, generator=generator)
    values[3], values[5, ::3], values[6, 1], values[7, 2] = 1.4, -0.0, torch.inf, -torch.inf
    return values


def assert_pairs(pairs: Pairs, mask: Tensor, values: Tensor) -> None:
    row, column = mask.nonzero(as_tuple=True)
    assert torch.equal(pairs.rows(), row)
    assert torch.equal(pairs.row_ptr, Pairs.from_rows(row, column, values[mask], *mask.shape).row_ptr)
    assert torch.equal(pairs.latent, column)
    assert torch.equal(pairs.value, values[mask])


@pytest.mark.parametrize("total", [1, 2, 300, 699, 700])
def test_largest_of_matrix(total: int) -> None:
    values = scores()
    mask = reference.largest(values.flatten() + 0.0, total).view_as(values)
    assert_pairs(compact.largest_of_matrix(values, total), mask, values)


@pytest.mark.parametrize("total", [1, 100, 210])
def test_largest_candidates(total: int) -> None:
    """Row 9 has none, and the list has room for more, of which nothing must be taken."""
    values = scores()
    listed = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) < 0.4
    listed[9] = False
    row, column = listed.nonzero(as_tuple=True)
    assert len(row) > 210
    ptr = torch.searchsorted(row, torch.arange(ROWS + 1))
    beyond = torch.full((30,), 9)
    some = Candidates(
        ptr=ptr,
        row=torch.cat([row, beyond]).int(),
        column=torch.cat([column, beyond]).int(),
        value=torch.cat([values[listed], torch.full((30,), 99.0)]),
    )
    mask = torch.zeros_like(listed)
    mask[listed] = reference.largest(values[listed] + 0.0, total)
    assert_pairs(compact.largest_candidates(some, ROWS, COLUMNS, total), mask, values)


def test_fewer_candidates_than_are_wanted_stay_inside() -> None:
    """Until the host has seen that others overflew, what is there must not be written elsewhere."""
    ptr = torch.arange(4)
    some = Candidates(ptr=ptr, row=ptr[:3].int(), column=ptr[:3].int(), value=torch.ones(3))
    pairs = compact.largest_candidates(some, 3, 5, 8)
    assert len(pairs) == 8
    assert int(pairs.latent.min()) >= 0 and int(pairs.latent.max()) < 5
    assert int(pairs.row_ptr.max()) <= 8
