"""The bounds hold for the products as computed here, compared with sums in float64."""

import numpy as np
import pytest
import torch

from saecache.train.backends.bounds import FLOOR, ROUNDING, product_bounds
from saecache.train.backends.compiled.bits import keys_of
from saecache.train.backends.compiled.selection.scan import CHUNK, whole_chunks
from saecache.train.backends.compiled.selection.screening_products import factors as make_factors
from saecache.train.backends.compiled.selection.screening_products import row_norms, to_codes

PRODUCTS = ("float32", "bfloat16", "int8")


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_score_exceeds_its_bound(factors, product):
    x, W, b = factors
    with make_factors(product, x, W) as ready:
        score = torch.empty(len(x), len(W), dtype=ready.dtype)
        tops = np.empty((len(x), whole_chunks(len(W)) // CHUNK), np.int32)
        ready.score(0, len(x), b.numpy(), score, tops)
        bounds = ready.bounds()
    score = score.float()
    assert_chunks_of(score + b, tops)
    true = x.double() @ W.double().T + b
    biased = score.double() + b
    error = bounds.slack[:, None].double() * bounds.norm + bounds.relative * score.abs()
    error += ROUNDING * biased.abs() + FLOOR
    assert bool(((true - biased).abs() <= error).all())


def assert_chunks_of(v, tops):
    """The keys are those of the largest values, whatever the sign of a zero."""
    padded = torch.full((len(v), tops.shape[1] * CHUNK), -torch.inf)
    padded[:, : v.shape[1]] = v
    largest = padded.view(len(v), -1, CHUNK).amax(2)
    assert np.array_equal(tops, keys_of(largest.numpy().ravel()).reshape(tops.shape))


def test_no_score_of_the_second_screening_exceeds_its_bound(factors):
    x, W, b = factors
    with make_factors("int8", x, W) as ready:
        bounds, wide, codes = ready.narrow_bounds(), ready.bounds(), ready.W_codes
        assert codes is not None
        score = (x @ codes.code.float().T) * codes.scale
    assert torch.equal(bounds.norm, wide.norm)
    assert bool((bounds.slack <= wide.slack).all())
    true = x.double() @ W.double().T + b
    biased = score.double() + b
    error = bounds.slack[:, None].double() * bounds.norm + bounds.relative * score.abs()
    error += ROUNDING * biased.abs() + FLOOR
    assert bool(((true - biased).abs() <= error).all())


def test_bfloat16_bounds_are_tight_enough_to_be_useful():
    """At the usual width, bounds of a tenth of the scores' spread give about 2 candidates per pair."""
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(64, 768, generator=generator) for _ in range(2))
    bounds = product_bounds(row_norms(x, x.bfloat16()), row_norms(W, W.bfloat16()), 768, "bfloat16")
    spread = x.norm(dim=1) * W.norm(dim=1).mean() / 768**0.5
    assert bool((bounds.slack * bounds.norm.mean() < 0.12 * spread).all())


@pytest.mark.parametrize("product", ["bfloat16", "int8"])
def test_norms_are_not_below_the_truth(factors, product):
    x, W, _ = factors
    for rows in (x, W):
        if product == "int8":
            codes = to_codes(rows, torch.empty(rows.shape, dtype=torch.int8))
            rounded, norms = codes.code.double() * codes.scale.double()[:, None], codes.norms
        else:
            rounded, norms = rows.bfloat16().double(), row_norms(rows, rows.bfloat16())
        assert bool((norms.norm >= rows.double().norm(dim=1)).all())
        assert bool((norms.error >= (rows.double() - rounded).norm(dim=1)).all())


def test_codes_round_to_the_nearest(factors):
    for rows in factors[:2]:
        codes = to_codes(rows, torch.empty(rows.shape, dtype=torch.int8))
        left_out = (rows.double() - codes.code.double() * codes.scale.double()[:, None]).abs()
        usable = rows.abs().amax(1) > 1e-29
        assert bool((left_out <= 0.5001 * codes.scale.double()[:, None])[usable].all())
        assert not bool(codes.code[~usable].any())
