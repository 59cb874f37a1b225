"""Settings of AuxK; the variants' contract checks its loss."""

import pytest

from saecache.train.variants.losses.auxk import AuxK, choose_k, default_k


@pytest.mark.parametrize(("d_model", "k"), [(768, 256), (1024, 512), (160, 64), (24, 8), (2, 1), (1, 1)])
def test_default_k_is_a_power_of_two_up_to_half_the_width(d_model: int, k: int) -> None:
    assert default_k(d_model) == k


def test_a_coefficient_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        AuxK(coefficient=0)


@pytest.mark.parametrize(
    ("num_latents", "codes_per_row", "k"),
    [
        (10, 4, 64),  # few are dead: Gao et al.'s, which takes all of them
        (64, 4, 64),
        (65, 4, 8),  # more than can be trained at a time: twice the codes of a row
        (2000, 16, 32),
        (2000, 60, 64),  # never more than Gao et al.'s
    ],
)
def test_many_dead_latents_are_trained_few_at_a_time(num_latents: int, codes_per_row: int, k: int) -> None:
    assert choose_k(160, num_latents, codes_per_row) == k
