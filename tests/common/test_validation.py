"""Settings that are made in Python are refused in the words in which a file would be."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import saecache
from saecache.common.errors import UsageError
from saecache.common.validation import validate

TOPK = {"kind": "topk", "k": 4}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: saecache.TrainConfig(variants=[TOPK], num_latents=8, steps=1, lr=1e-3),
            "lr: unknown key; known keys",
        ),
        (
            lambda: saecache.TrainConfig(variants=[{"kind": "topkk"}], num_latents=8, steps=1),
            "did you mean 'topk'",
        ),
        (lambda: saecache.HarvestConfig(modle="gpt2"), "did you mean 'model'"),
        (lambda: saecache.StorageConfig(dtype="f16"), "expected one of float16"),
    ],
)
def test_a_wrong_call_is_explained(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as told:
        make()
    assert "pydantic" not in str(told.value) and "Extra inputs" not in str(told.value)


def test_settings_within_others_are_told_with_their_place() -> None:
    with pytest.raises(
        UsageError, match=r"(?s)recipe.yaml is not a valid HarvestConfig.*storage.dtype: got 'f16'"
    ):
        validate(saecache.HarvestConfig, {"storage": {"dtype": "f16"}}, "recipe.yaml")


def test_settings_can_be_copied_and_sent() -> None:
    config = saecache.StorageConfig(dtype="float32")
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "endless", [{"accumulate_batches": 10**400}, {"dead_after_rows": 10**400}, {"epochs": 1e308}]
)
def test_numbers_that_nothing_can_count_are_refused(endless: dict[str, float]) -> None:
    """They were an OverflowError in the middle of a run."""
    with pytest.raises(UsageError, match=f"{next(iter(endless))}: must be less than"):
        validate(saecache.TrainConfig, {"variants": [TOPK], "num_latents": 8, **endless}, "c.yaml")
