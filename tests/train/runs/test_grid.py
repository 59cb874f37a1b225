"""Grids expand to variants with names of their own; impossible ones are refused before anything starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from saecache.common.errors import UsageError
from saecache.common.validation import validate
from saecache.configs import load_config
from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes
from saecache.train import TrainConfig, run

REST: dict[str, Any] = {"num_latents": 96, "steps": 5}


def names(*variants: dict[str, Any]) -> list[str]:
    config = validate(TrainConfig, {"variants": list(variants), **REST}, "config")
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    return [variant.run_name for variant in config.variants]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ({"kind": "topk", "k": [4, 8, 16]}, ["topk_k4", "topk_k8", "topk_k16"]),
        (
            {"kind": ["topk", "batch_topk"], "k": [4, 8]},
            ["topk_k4", "topk_k8", "batch_topk_k4", "batch_topk_k8"],
        ),
        ({"kind": "topk", "k": 4, "seed": [0, 1]}, ["topk_k4_seed0", "topk_k4_seed1"]),
        ({"kind": "topk", "k": 4, "num_latents": [32, 64]}, ["topk_k4_f32", "topk_k4_f64"]),
        ({"kind": "relu", "l1": {"coefficient": [0.1, 0.2]}}, ["relu_l1_0.1", "relu_l1_0.2"]),
        (
            {"kind": "jumprelu", "penalty": {"kind": "tanh", "coefficient": [0.1, 0.2]}},
            ["jumprelu_tanh_0.1", "jumprelu_tanh_0.2"],
        ),
        (
            {
                "kind": "topk",
                "name": "lr_{optimizer.learning_rate}",
                "optimizer": {"learning_rate": [0.1, 1e-5]},
            },
            ["lr_0.1", "lr_1e-05"],
        ),
        # settings whose type is a list do not expand
        ({"kind": "topk", "optimizer": {"betas": [0.9, 0.99]}}, ["topk_k32"]),
        ({"kind": "matryoshka_batch_topk", "k": 4, "prefixes": [0.5, 1.0]}, ["matryoshka_batch_topk_k4"]),
    ],
)  # fmt: skip
def test_lists_ask_for_every_combination(variant: dict[str, Any], expected: list[str]) -> None:
    assert names(variant) == expected


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([{"kind": "topk", "k": [4, 4]}], "two variants are called topk_k4 and are the same: leave one out"),
        ([{"kind": "topk", "k": [4, 8]}, {"kind": "topk", "k": 8}], "topk_k8 and are the same"),
        (
            [{"kind": "topk", "k": [4, 8], "name": "mine"}],
            r"called mine: they differ in k, .*in a grid, put the setting in braces \(name: 'mine_k\{k\}'\)",
        ),
        (
            [{"kind": "topk", "optimizer": {"learning_rate": [0.1, 0.2]}}],
            r"name: 'topk_learning_rate\{optimizer.learning_rate\}'",
        ),
        (
            [{"kind": "topk", "k": [4, 8], "seed": [0, 1], "optimizer": {"learning_rate": [0.1, 0.2]}}],
            r"name: 'topk_seed\{seed\}_learning_rate\{optimizer.learning_rate\}_k\{k\}'",
        ),
        ([{"kind": "topk", "k": []}], "variants.0.k: an empty list gives no variant"),
        ([{"kind": "topk", "k": [4], "name": "a{q}"}], r"names 'q', but this variant only sets k, kind"),
        ([{"kind": ["topk", "tokp"]}], "did you mean 'topk'"),
        ([{"kind": "topk", "kk": [1, 2]}], "kk: unknown key"),
        ([{"kind": "topk", "k": [4, 0]}], "greater than 0"),
    ],
)
def test_mistakes_are_reported_with_a_fix(variants: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        names(*variants)


def test_the_name_that_the_message_proposes_works() -> None:
    variant = {"kind": "topk", "optimizer": {"learning_rate": [0.1, 0.2]}}
    named = {**variant, "name": "topk_k32_learning_rate{optimizer.learning_rate}"}
    assert names(named) == ["topk_k32_learning_rate0.1", "topk_k32_learning_rate0.2"]


def test_from_the_command_line(tmp_path: Path) -> None:
    config = load_config(
        TrainConfig, "demo", ["variants.*.seed=[0, 1]", "variants.0.k=[4, 8]"], kinds=("train",)
    )
    found = [variant.run_name for variant in config.variants]
    assert found[:4] == ["topk_k4_seed0", "topk_k4_seed1", "topk_k8_seed0", "topk_k8_seed1"]
    assert len(found) == 12
    for override in ("steps.*.x=1", "variants.*.k.x=1", "num_latents.*.k=3"):
        with pytest.raises(UsageError, match="--set"):
            load_config(TrainConfig, "demo", [override], kinds=("train",))


def test_a_grid_is_the_same_run_as_its_variants_one_by_one(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config({"kind": ["topk", "batch_topk"], "k": [3, 4]}, steps=2)
    result = run(config, cache, tmp_path / "run")
    assert list(result.saes) == ["topk_k3", "topk_k4", "batch_topk_k3", "batch_topk_k4"]
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert TrainConfig.model_validate(written) == config
    assert [v["k"] for v in written["variants"]] == [3, 4, 3, 4]
    one_by_one = make_config(*({"kind": v.kind, "k": v.k} for v in config.variants), steps=2)
    assert run(one_by_one, cache, tmp_path / "run").reused
    alone = run(make_config({"kind": "batch_topk", "k": 3}, steps=2), cache, tmp_path / "alone").saes
    assert folder_bytes(alone["batch_topk_k3"]) == folder_bytes(result.saes["batch_topk_k3"])
