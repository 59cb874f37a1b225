"""Variants are discovered in their files; an unfinished one raises an error that says what is missing."""

from typing import Literal

import pytest

from saecache.train.variants import VARIANTS, kind_of
from saecache.train.variants.base.variant import Variant
from saecache.train.variants.topk import TopK


def test_every_kind_is_found_by_its_name() -> None:
    assert VARIANTS["topk"] is TopK
    assert all(kind_of(variant, {}) == kind for kind, variant in VARIANTS.items())


def test_a_kind_that_is_no_literal_is_refused() -> None:
    class Mine(TopK):
        kind: str = "mine"  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r'Mine in .*: declare its kind as  kind: Literal\["NAME"\] = "NAME"'):
        kind_of(Mine, {})


def test_a_missing_method_is_reported() -> None:
    class Mine(Variant):
        kind: Literal["mine"] = "mine"

    with pytest.raises(
        TypeError, match=r"Mine in .* lacks .*encode.*: see Variant in train/variants/base/variant.py"
    ):
        kind_of(Mine, {})


def test_two_variants_of_one_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="are both of kind 'topk'"):
        kind_of(TopK, {"topk": TopK})
