"""Settings that contradict themselves are found without a cache, and the message says how to fix them."""

from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.common.validation import validate
from saecache.train import TrainConfig
from saecache.train.engine.feed import num_steps
from saecache.train.variants import VARIANTS

GOOD: dict[str, Any] = {"variants": [{"kind": "topk", "k": 4}], "num_latents": 64, "steps": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": []}, "at least 1 item"),
        ({"variants": [{"kind": "tokp", "k": 4}]}, "did you mean 'topk'"),
        ({"variants": [{"kind": "topk", "kk": 4}]}, r"kk: unknown key \(did you mean 'k'"),
        ({"variants": [{"kind": "topk", "k": 0}]}, "greater than 0"),
        ({"variants": [{"kind": "topk", "threshold": {}}]}, "threshold: unknown key"),
        ({"variants": [{"kind": "topk"}, {"kind": "topk"}]}, "two variants are called topk_k32"),
        ({"variants": [{"kind": "topk", "name": "../x"}]}, "should match pattern"),
        (
            {"variants": [{"kind": "topk", "name": "a"}, {"kind": "topk", "name": "A"}]},
            "two variants are called",
        ),
        ({"variants": [{"kind": "topk", "name": "run.json"}]}, "a variant cannot be called run.json"),
        ({"num_latents": None}, "exactly one of num_latents and expansion_factor, got neither"),
        ({"expansion_factor": 4}, "exactly one of num_latents and expansion_factor"),
        ({"steps": None}, "exactly one of epochs, steps and num_rows, got none"),
        ({"epochs": 2}, "exactly one of epochs, steps and num_rows"),
        ({"log": {"every_steps": 20, "heldout_every_steps": 30}}, "must be a multiple of log.every_steps=20"),
        ({"optimizer": {"learning_rate": -1}}, "learning_rate"),
        ({"optimizer": {"kind": "sgd"}}, "expected one of adam, adamw"),
        ({"schedule": {"decay": "step"}}, "expected one of constant, linear, cosine"),
        ({"normalization": "zscore"}, "expected one of unit, none, scale, unit_scale, layer_norm"),
        ({"bach_rows": 3}, r"bach_rows: unknown key \(did you mean 'batch_rows'"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        validate(TrainConfig, {**GOOD, **changes}, "config")


def test_names_say_what_sets_a_variant_apart() -> None:
    variants = [
        {"kind": "topk", "k": 4},
        {"kind": "topk", "k": 4, "seed": 1},
        {"kind": "topk", "k": 4, "num_latents": 128},
        {"kind": "topk", "k": 4, "name": "mine"},
        {"kind": "batch_topk", "k": 4},
        {"kind": "feature_choice", "k": 4},
    ]
    config = TrainConfig.model_validate({**GOOD, "variants": variants})
    names = [variant.run_name for variant in config.variants]
    assert names == ["topk_k4", "topk_k4_seed1", "topk_k4_f128", "mine", "batch_topk_k4", "feature_choice_k4"]


def test_kinds_are_found_by_their_files() -> None:
    assert {"topk", "batch_topk", "feature_choice"} <= VARIANTS.keys()


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"steps": 7}, 7), ({"num_rows": 1050}, 10), ({"epochs": 1}, 9), ({"epochs": 2.5}, 22)],
)
def test_length_of_a_run(length: dict[str, Any], steps: int) -> None:
    config = TrainConfig.model_validate({**GOOD, "steps": None, "batch_rows": 100, **length})
    assert num_steps(config, cache_rows=950) == steps
