"""The few numbers that the report draws stand for the whole distribution."""

import numpy as np
import torch

from saecache.evaluate.metrics import density_curve, l0_histogram, log_spaced_integers


def test_all_ranks_are_there_when_they_are_few() -> None:
    curve = density_curve(torch.tensor([0.0, 0.5, 1.0, 0.01], dtype=torch.float64), 100)
    assert curve.rank == [1, 2, 3]
    assert curve.density == [1.0, 0.5, 0.01]
    assert sum(curve.log10_histogram.counts) == 3
    assert curve.log10_histogram.counts[0] == 1
    assert curve.log10_histogram.counts[-1] == 1
    assert curve.log10_histogram.edges[0] == -2
    assert curve.log10_histogram.edges[-1] == 0


def test_many_ranks_are_thinned_and_none_is_lost_from_the_histogram() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 1000, 50_000)
    density = torch.from_numpy(counts / 997)
    curve = density_curve(density.clamp(max=1), 997)
    alive = int((counts > 0).sum())
    assert len(curve.rank) <= 200
    assert (curve.rank[0], curve.rank[-1]) == (1, alive)
    assert curve.density == sorted(curve.density, reverse=True)
    assert sum(curve.log10_histogram.counts) == alive


def test_an_sae_without_alive_latents_has_an_empty_curve() -> None:
    curve = density_curve(torch.zeros(4), 1)
    assert curve.rank == []
    assert sum(curve.log10_histogram.counts) == 0


def test_log_spaced_integers() -> None:
    assert log_spaced_integers(5, 10).tolist() == [1, 2, 3, 4, 5]
    spaced = log_spaced_integers(10**6, 100)
    assert (spaced[0], spaced[-1]) == (1, 10**6)
    assert (np.diff(spaced) > 0).all()


def test_l0_histogram_keeps_every_row() -> None:
    rows = torch.zeros(1001, dtype=torch.int64)
    rows[32] = 10
    only = l0_histogram(rows)
    assert only.edges == [32, 33]
    assert only.counts == [10]
    rows[1000] = 1
    wide = l0_histogram(rows)
    assert len(wide.counts) <= 60
    assert sum(wide.counts) == 11
    assert wide.edges[0] == 32
    assert wide.edges[-1] > 1000
    assert len(set(np.diff(wide.edges))) == 1
