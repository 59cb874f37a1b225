"""Collapse of one decoder and overlap of two, against dense float64 matrices and one assignment."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from saecache.evaluate.metrics import collapse, overlap
from saecache.evaluate.metrics.collapse import block_latents, measure_collapse, sample_of
from saecache.evaluate.metrics.overlap import MATCH, match_one_to_one, max_cosines, measure_overlap
from saecache.train.variants.topk import TopK

from ..conftest import LATENTS, make_sae


def directions(latents: int, width: int, seed: int) -> torch.Tensor:
    """Rows of different norms, some of them nearly the same direction."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(latents, width, generator=random) * (0.1 + torch.rand(latents, 1, generator=random))
    rows[: latents // 5] = rows[latents // 5 : 2 * (latents // 5)] + 0.05 * torch.randn(
        latents // 5, width, generator=random
    )
    return rows


def unit(rows: torch.Tensor) -> np.ndarray:
    dense = rows.double().numpy()
    return dense / np.linalg.norm(dense, axis=1, keepdims=True)


def test_collapse_is_that_of_the_whole_matrix() -> None:
    W_dec = directions(1300, 24, 0)
    found = measure_collapse(W_dec, 5000, 0)
    nfm = unit(W_dec) @ unit(W_dec).T
    others = nfm[~np.eye(1300, dtype=bool)]
    nearest = np.where(np.eye(1300, dtype=bool), -np.inf, nfm).max(1)
    assert found.nfm_norm == pytest.approx(np.linalg.norm(nfm), rel=1e-6)
    assert found.mean_square_cosine == pytest.approx((others**2).mean(), rel=1e-5)
    eigenvalues = np.linalg.eigvalsh(unit(W_dec).T @ unit(W_dec))
    assert found.effective_dimensions == pytest.approx(
        eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-5
    )
    assert found.nearest_cosine == pytest.approx(nearest.mean(), rel=1e-5)
    assert found.same_direction_share == pytest.approx((nearest > 0.9).mean())
    assert found.nearest_cosine_quantiles["0.5"] == pytest.approx(np.median(nearest), abs=2e-3)
    assert found.num_sampled == 1300
    assert found.mean_square_cosine_of_random == 1 / 24


def test_extremes_of_collapse() -> None:
    apart = measure_collapse(3 * torch.eye(8), 100, 0)
    assert (apart.mean_square_cosine, apart.nearest_cosine) == (0, 0)
    assert apart.effective_dimensions == pytest.approx(8)
    same = measure_collapse(torch.ones(50, 8), 100, 0)
    assert same.mean_square_cosine == pytest.approx(1, rel=1e-6)
    assert same.same_direction_share == 1
    assert same.effective_dimensions == pytest.approx(1, rel=1e-6)
    assert measure_collapse(torch.ones(1, 4), 10, 0).nfm_norm == pytest.approx(1)


def test_blocks_are_bounded_and_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    W_a, W_b = directions(70, 12, 2), directions(90, 12, 3)
    whole = max_cosines(W_a, W_b), measure_collapse(W_a, 100, 0), match_one_to_one(W_a, W_b)
    assert block_latents(2048) == 512
    assert block_latents(1 << 20) == 16
    assert block_latents(1 << 30) == 1
    monkeypatch.setattr(collapse, "_BLOCK_COSINES", 7 * 90)
    assert block_latents(90) == 7
    assert torch.allclose(max_cosines(W_a, W_b), whole[0], atol=1e-6)
    assert measure_collapse(W_a, 100, 0).nearest_cosine == pytest.approx(whole[1].nearest_cosine, rel=1e-6)
    assert match_one_to_one(W_a, W_b).matched == whole[2].matched


def test_a_sample_of_latents_is_compared_with_all_others() -> None:
    W_dec = directions(700, 16, 1)
    found = measure_collapse(W_dec, 100, seed=5)
    sample = sample_of(700, 100, 5).numpy()
    nfm = unit(W_dec) @ unit(W_dec).T
    np.fill_diagonal(nfm, -np.inf)
    assert found.num_sampled == 100
    assert found.nearest_cosine == pytest.approx(nfm[sample].max(1).mean(), rel=1e-5)
    assert sample_of(10, 10, 0).tolist() == list(range(10))


def test_mmcs_is_the_mean_of_the_largest_cosines() -> None:
    W_a, W_b = directions(600, 12, 2), directions(450, 12, 3)
    expected = (unit(W_a) @ unit(W_b).T).max(1)
    assert max_cosines(W_a, W_b).numpy() == pytest.approx(expected, abs=1e-6)
    shuffled = W_a[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    assert max_cosines(W_a, 5 * shuffled).numpy() == pytest.approx(np.ones(600), abs=1e-6)


@pytest.mark.parametrize("width", [3, 6, 24])  # in few dimensions the pairs form large blocks
def test_blocks_give_the_matching_of_the_whole_problem(width: int) -> None:
    W_a = directions(260, width, 4)
    noise = 0.3 * torch.randn(300, width, generator=torch.Generator().manual_seed(9))
    W_b = torch.nn.functional.normalize(directions(300, width, 4), dim=1) + noise / width**0.5
    cosine = unit(W_a) @ unit(W_b).T
    gain = np.where(cosine >= MATCH, cosine, 0)
    chosen = gain[linear_sum_assignment(gain, maximize=True)]
    found = match_one_to_one(W_a, W_b)
    assert found is not None
    assert found.matched == (chosen > 0).sum() > 0
    assert found.mean_cosine == pytest.approx(chosen[chosen > 0].mean(), abs=1e-5)
    assert found.share == found.matched / 260


def test_nothing_alike_and_everything_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = match_one_to_one(torch.eye(6)[:3], torch.eye(6)[3:])
    assert apart is not None
    assert (apart.matched, apart.share, apart.mean_cosine) == (0, 0, None)
    same = match_one_to_one(torch.ones(40, 4), torch.ones(30, 4))  # one block; every latent is used once
    assert same is not None
    assert (same.matched, same.share) == (30, 1)
    monkeypatch.setattr(overlap, "MAX_BLOCK", 29)
    assert match_one_to_one(torch.ones(40, 4), torch.ones(30, 4)) is None
    monkeypatch.setattr(overlap, "MAX_PAIRS", 100)
    assert match_one_to_one(torch.ones(40, 4), torch.ones(30, 4)) is None


def test_overlap_of_two_saes(cache) -> None:
    a, b = (make_sae(cache, name, TopK(k=4), seed=seed) for name, seed in (("a", 0), ("b", 1)))
    cosine = unit(a.W_dec) @ unit(b.W_dec).T
    settings = {"num_sampled": 500, "match_latents": 500, "seed": 0}
    found = measure_overlap(("a", a), ("b", b), **settings)
    assert found.mmcs_a_in_b == pytest.approx(cosine.max(1).mean(), rel=1e-5)
    assert found.mmcs_b_in_a == pytest.approx(cosine.max(0).mean(), rel=1e-5)
    assert (found.num_a, found.num_b) == (LATENTS, LATENTS)
    low, high = found.intervals["mmcs_a_in_b"]
    assert low < found.mmcs_a_in_b < high
    same = measure_overlap(("a", a), ("again", a), **settings)
    assert same.mmcs_a_in_b == pytest.approx(1, abs=1e-6)
    assert same.matching is not None
    assert same.matching.share == 1
    few = measure_overlap(("a", a), ("b", b), num_sampled=10, match_latents=LATENTS - 1, seed=3)
    assert few.mmcs_a_in_b == pytest.approx(cosine[sample_of(LATENTS, 10, 3).numpy()].max(1).mean(), rel=1e-5)
    assert few.matching is None
