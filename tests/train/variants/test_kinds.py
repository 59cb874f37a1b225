"""Variants are found by their files; one that is not finished says what is missing."""

from typing import Literal

import pytest

from saecache.train.variants import VARIANTS, kind_of
from saecache.train.variants.base.variant import Variant
from saecache.train.variants.topk import TopK


def test_every_kind_is_found_by_its_name() -> None:
    assert VARIANTS["topk"] is TopK
    assert all(kind_of(variant, {}) == kind for kind, variant in VARIANTS.items())


def test_a_kind_that_is_no_literal() -> None:
    class Mine(TopK):
        kind: str = "mine"  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r'Mine in .*: declare its kind as  kind: Literal\["NAME"\] = "NAME"'):
        kind_of(Mine, {})


def test_a_method_that_was_forgotten() -> None:
    class Mine(Variant):
        kind: Literal["mine"] = "mine"

    with pytest.raises(
        TypeError, match=r"Mine in .* lacks .*encode.*: see Variant in train/variants/base/variant.py"
    ):
        kind_of(Mine, {})


def test_two_of_one_kind() -> None:
    with pytest.raises(TypeError, match="are both of kind 'topk'"):
        kind_of(TopK, {"topk": TopK})
