"""The bounds hold for what the products really return, compared with sums in float64."""

import pytest
import torch

from saecache.train.selection.bounds import FLOOR, ROUNDING, product_bounds, row_norms


@pytest.mark.parametrize("product", ["float32", "bfloat16"])
def test_no_score_is_further_off(factors, product):
    x, W, b = factors
    if product == "float32":
        score = x @ W.T
        bounds = product_bounds(row_norms(x, None), row_norms(W, None), x.shape[1], product)
    else:
        x_rounded, W_rounded = x.bfloat16(), W.bfloat16()
        score = (x_rounded @ W_rounded.T).float()
        bounds = product_bounds(row_norms(x, x_rounded), row_norms(W, W_rounded), x.shape[1], product)
    true = x.double() @ W.double().T + b
    biased = score.double() + b
    error = bounds.slack[:, None].double() * bounds.norm + bounds.relative * score.abs()
    error += ROUNDING * biased.abs() + FLOOR
    assert bool(((true - biased).abs() <= error).all())


def test_bfloat16_bounds_are_tight_enough_to_be_useful():
    """At the usual width, a bound of a tenth of the scores' spread leaves about twice as many candidates as
    wanted.
    """
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(64, 768, generator=generator) for _ in range(2))
    bounds = product_bounds(row_norms(x, x.bfloat16()), row_norms(W, W.bfloat16()), 768, "bfloat16")
    spread = x.norm(dim=1) * W.norm(dim=1).mean() / 768**0.5
    assert bool((bounds.slack * bounds.norm.mean() < 0.12 * spread).all())


def test_norms_are_not_below_the_truth(factors):
    x, W, _ = factors
    for rows in (x, W):
        rounded = rows.bfloat16()
        norms = row_norms(rows, rounded)
        assert bool((norms.norm >= rows.double().norm(dim=1)).all())
        assert bool((norms.error >= (rows.double() - rounded.double()).norm(dim=1)).all())
