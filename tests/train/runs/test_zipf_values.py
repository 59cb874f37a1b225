"""Fitted values of Zipf's law reach every law of a config, and nothing else."""

from collections.abc import Callable

import pytest

from saecache.common.errors import UsageError
from saecache.train import TrainConfig
from saecache.train.runs.zipf_values import with_zipf


def test_every_law_and_nothing_else_changes(make_config: Callable[..., TrainConfig]) -> None:
    phase = {"steps": 2, "window_rows": 100, "aux_zipf": {"k": 3, "zipf": {"beta": 2.0}}}
    config = make_config(
        {"kind": "topk", "k": 4},
        {"kind": "mutual_choice", "k": 4, "window_rows": 100},
        {
            "kind": "feature_choice",
            "k": 4,
            "zipf": {"rounding": "carry", "max_rows": 9},
            "mutual_choice": phase,
        },
        {"kind": "feature_choice", "k": 5},
    )
    found = with_zipf(config, 0.75, 12.5)
    topk, mutual, feature, uniform = found.variants
    laws = [mutual.aux_zipf.zipf, feature.zipf, feature.mutual_choice.aux_zipf.zipf]
    assert {(law.alpha, law.beta) for law in laws} == {(0.75, 12.5)}
    assert (feature.zipf.rounding, feature.zipf.max_rows, feature.mutual_choice.aux_zipf.k) == ("carry", 9, 3)
    assert uniform.zipf is None and uniform == config.variants[3] and topk == config.variants[0]
    assert with_zipf(found, 1.0, 6.8).variants[1] == config.variants[1]
    assert found.model_copy(update={"variants": config.variants}) == config


def test_a_config_without_a_law_is_refused(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config({"kind": "topk", "k": 4}, {"kind": "feature_choice", "k": 5})
    with pytest.raises(UsageError, match=r"none of the variants \(feature_choice, topk\) has a Zipf law"):
        with_zipf(config, 1.0, 2.0)


def test_impossible_values_are_refused(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config({"kind": "mutual_choice", "k": 4, "window_rows": 100})
    with pytest.raises(UsageError, match=r"aux_zipf\.zipf\.beta"):
        with_zipf(config, 1.0, -2.0)
