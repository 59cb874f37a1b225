"""The dying latents are those of Definition 3.1."""

import pytest
import torch
from torch import Tensor

from saecache.train.variants.base.zipf import Zipf
from saecache.train.variants.losses.aux_zipf import AuxZipf

F, K, B = 40, 4, 128
LAW = Zipf(beta=6.8)


def definition(prevalence: Tensor, expected: list[float]) -> set[int]:
    """The three conditions, latent by latent, from the last rank up."""
    ranked = sorted(range(F), key=lambda latent: -float(prevalence[latent]))
    dying: set[int] = set()
    for i in range(F, 0, -1):
        latent = ranked[i - 1]
        if not (i > 3 / 4 * F and float(prevalence[latent]) / expected[i - 1] < 0.6):
            break  # condition 3: every later one is dying too
        dying.add(latent)
    return dying


def expectation() -> list[float]:
    weights = [1 / (i + 6.8) for i in range(1, F + 1)]
    return [K * weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("seed", range(20))
def test_dying_latents_are_those_of_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    law = torch.tensor(expectation(), dtype=torch.float32)
    noise = 0.9 + 0.2 * torch.rand(F, generator=generator)
    last = int(torch.randint(0, F // 2, (), generator=generator))
    noise[F - last :] *= 1.2 * torch.rand(last, generator=generator)
    prevalence = (law * noise)[torch.randperm(F, generator=generator)]
    found = AuxZipf(zipf=LAW).dying(prevalence, K, B)
    assert found.tolist() == sorted(definition(prevalence, expectation()))


def test_a_latent_above_a_healthy_one_is_not_dying() -> None:
    """Condition 3: ranks 31 to 38 are too rare, but ranks 39 and 40 are not, although they are rarer."""
    prevalence = torch.tensor(expectation(), dtype=torch.float32)
    prevalence[30:38] *= 0.59
    prevalence[38] *= 0.6005
    prevalence[39] *= 0.605
    assert bool((prevalence.diff() < 0).all())
    assert AuxZipf(zipf=LAW).dying(prevalence, K, B).numel() == 0
    prevalence[38:] *= 0.9
    assert AuxZipf(zipf=LAW).dying(prevalence, K, B).tolist() == list(range(30, 40))


def test_only_the_last_quarter_can_be_dying_and_dead_ones_are() -> None:
    law = torch.tensor(expectation(), dtype=torch.float32)
    prevalence = law.clone()
    prevalence[10:] = 0.0
    assert AuxZipf(zipf=LAW).dying(prevalence, K, B).tolist() == list(range(30, 40))


def test_rare_latents_are_expected_though_the_floor_gives_them_no_row() -> None:
    """With 8 rows a batch, Algorithm 1 gives the last ranks 0 rows; at 90 % of the law they are not dying."""
    assert int(LAW.rows(K, F, 8).min()) == 0
    law = torch.tensor(expectation(), dtype=torch.float32)
    assert AuxZipf(zipf=LAW).dying(0.9 * law, K, 8).numel() == 0
    assert AuxZipf(zipf=LAW).dying(0.5 * law, K, 8).tolist() == list(range(30, 40))
