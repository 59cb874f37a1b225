"""The screening product and its bounds."""

import pytest
import torch
from torch import Tensor

from saecache.train.backends.triton import screen as module
from saecache.train.backends.triton.candidates import candidates, least_of_all, least_of_rows
from saecache.train.backends.triton.exact import exact_matrix
from saecache.train.backends.triton.largest import largest_per_row
from saecache.train.backends.triton.rounding import ScreenRows, round_batch, round_latents
from saecache.train.backends.triton.screen import chunk_for, keeps_bounds, options_of, screen

from .cases import factors

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "latents", "width", "chunk"), [(5, 70, 20, 64), (40, 131, 33, 8), (1, 9, 1, 16)]
)
@pytest.mark.parametrize("bias_of_rows", [True, False])
def test_scores_and_tops(rows: int, latents: int, width: int, chunk: int, bias_of_rows: bool) -> None:
    x, W, b = factors(rows, latents, width, whole=True)
    bias = x[:, 0].clone() if bias_of_rows else b
    found = screen(round_batch(x), round_latents(W), bias, chunk=chunk, bias_of_rows=bias_of_rows)
    assert torch.equal(found.scores, (x @ W.T).bfloat16())
    pre = (x @ W.T).double() + (bias[:, None] if bias_of_rows else bias)
    error = found.rows.factor.double()[:, None] * found.columns.factor.double()
    lowest = (
        torch.nn.functional.pad(pre, (0, -latents % chunk), value=-torch.inf).view(rows, -1, chunk).amax(2)
    )
    highest = torch.nn.functional.pad(pre + 1.001 * error + 1e-3, (0, -latents % chunk), value=-torch.inf)
    assert found.tops.shape == lowest.shape
    assert bool((found.tops >= lowest).all())
    assert bool((found.tops <= highest.view(rows, -1, chunk).amax(2)).all())


@pytest.mark.parametrize("width", [1, 40])
def test_bounds_are_kept_and_a_screen_that_breaks_them_is_found(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps_bounds.cache_clear()
    assert keeps_bounds(CPU, width)

    def bolder(W: Tensor) -> ScreenRows:
        rows = round_latents(W)
        return ScreenRows(rounded=rows.rounded, factor=rows.factor * 1e-3, norm=rows.norm)

    monkeypatch.setattr(module, "round_latents", bolder)
    keeps_bounds.cache_clear()
    assert not keeps_bounds(CPU, width)
    keeps_bounds.cache_clear()


def test_a_screen_that_breaks_its_bounds_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from saecache.train.backends.triton import largest, prepare

    monkeypatch.setattr(prepare, "keeps_bounds", lambda *_: False)
    monkeypatch.setattr(largest, "screen", lambda *_, **__: pytest.fail("the screen was used"))
    x, W, b = factors(2, 70, 8, whole=True)
    assert len(largest_per_row(x, W, b, 2)) == 4


@pytest.mark.parametrize("whole", [True, False])
def test_norms_and_roundings_are_bounded(whole: bool) -> None:
    x, W, _ = factors(9, 11, 300, whole=whole)
    for rows, rounded in ((x, round_batch(x)), (W, round_latents(W))):
        assert torch.equal(rounded.rounded, rows.bfloat16())
        assert bool((rounded.norm.double() >= rows.double().norm(dim=1)).all())
    from saecache.train.backends.triton.rounding import FRACTION

    factor = round_latents(W).factor.double()
    assert bool((factor >= W.double().norm(dim=1)).all())
    assert bool((factor * FRACTION >= (W - W.bfloat16().float()).double().norm(dim=1)).all())


def test_thresholds_are_reached_by_as_many_as_are_wanted() -> None:
    x, W, b = factors(6, 200, 20, whole=False)
    found = screen(round_batch(x), round_latents(W), b, chunk=8)
    pre = exact_matrix(x, W, b)
    wanted = torch.tensor([0, 1, 2, 5, 25, 26])
    least = least_of_rows(found, wanted)
    assert bool(((pre >= least[:, None]).sum(1) >= wanted).all())
    assert least[0] == torch.inf
    assert least[5] == -torch.inf, "26 of 25 chunks"
    assert int((pre >= least_of_all(found, 40)).sum()) >= 40
    assert least_of_all(found, 151).item() == -torch.inf
    assert bool((least_of_rows(found, 5) > pre.amin(1)).all()), "a threshold that rules something out"


@pytest.mark.parametrize("limit_of", ["row", "column", "all"])
def test_candidates_are_all_that_reach_the_limit(limit_of: str) -> None:
    x, W, b = factors(6, 200, 20, whole=False)
    pre = exact_matrix(x, W, b)
    found = screen(round_batch(x), round_latents(W), b)
    limit = {"row": pre.quantile(0.9, dim=1), "column": pre.amax(0) - 1, "all": pre.quantile(0.9).view(1)}[
        limit_of
    ]
    some = candidates(found, limit, limit_of, 400, x, W)
    count = int(some.count)
    row, column = some.row[:count].long(), some.column[:count].long()
    places = row * 200 + column
    assert bool((places.diff() > 0).all())
    assert torch.equal(some.value[:count], pre[row, column])
    reaches = pre >= (limit[:, None] if limit_of == "row" else limit)
    missed = reaches.clone()
    missed[row, column] = False
    assert not bool(missed.any())
    assert count < int(reaches.sum()) + 60, "the bounds are tight"
    few = candidates(found, limit, limit_of, 10, x, W)
    assert torch.equal(few.ptr, some.ptr)
    assert torch.equal(few.value, some.value[:10])


def test_room_for_none_is_room_for_one() -> None:
    x, W, b = factors(3, 70, 8, whole=True)
    found = screen(round_batch(x), round_latents(W), b)
    some = candidates(found, torch.full((1,), -torch.inf), "all", 0, x, W)
    assert some.room == 1
    assert (int(some.row[0]), int(some.column[0])) == (0, 0)
    assert float(some.value[0]) == float((x[0] * W[0]).sum() + b[0])


SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # of a program, at most


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_the_blocks_of_the_product_fit_in_shared_memory(capability: int) -> None:
    options = options_of(capability)
    held = options["num_stages"] * (options["BM"] + options["BN"]) * options["BK"] * 2
    assert held <= SHARED_KIB[capability] * 1024


def test_chunks_are_many_enough() -> None:
    assert chunk_for(24576, 32) == 64
    assert chunk_for(4096, 5.3) == 64
    assert chunk_for(4096, 32) == 32
    assert chunk_for(4096, 1000) == 8
