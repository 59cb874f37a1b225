"""Settings of AuxK; the variants' contract checks its loss."""

import pytest

from saecache.train.variants.losses.auxk import AuxK, default_k


@pytest.mark.parametrize(("d_model", "k"), [(768, 256), (1024, 512), (160, 64), (24, 8), (2, 1), (1, 1)])
def test_default_k_is_a_power_of_two_up_to_half_the_width(d_model: int, k: int) -> None:
    assert default_k(d_model) == k


def test_a_coefficient_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        AuxK(coefficient=0)
