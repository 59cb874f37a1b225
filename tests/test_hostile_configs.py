"""Whatever a config of somebody else holds: settings, or a message of ours, in bounded time and memory."""

import random
import sys
from pathlib import Path

import pytest
import torch

from saecache.common.errors import UsageError
from saecache.common.validation import validate
from saecache.configs import list_recipes, load_config
from saecache.configs.overrides import apply_override
from saecache.configs.yaml_text import MAX_BYTES, parse_yaml
from saecache.evaluate import EvaluateConfig
from saecache.evaluate.judge.config import InterpretConfig
from saecache.train import TrainConfig
from saecache.train.runs.zipf_values import with_zipf
from saecache.train.variants.base.variant import Plan
from saecache.train.variants.feature_choice import FeatureChoice, zipf_problems

from .hostile import CASES, in_its_place, mutated, replace_with, right_or_refused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="FIFOs, and the peak of memory in /proc")

RECIPES = {
    recipe.name: recipe.text for kind in ("train", "papers", "evaluate") for recipe in list_recipes(kind)
}
VALUES = (
    ".inf", "-.nan", "1e999", "9" * 5000, "2026-99-99", "!!int x", "!!binary ====", "!!timestamp x", "{}",
    "[]", "[[[]]]", "~", "!!set {a}", "{1: 2}", "{? [a] : b}", "&x [*x]", "'\\0'", "!!python/object:x x",
    "{<<: 1}", "{<<: [*a]}", "0x", "1:60:60", "=", "[1, 2, 3]", str(list(range(2000))), "-1", "1e308", "yes",
)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_any_bytes_in_a_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    model = EvaluateConfig if "variants" not in RECIPES[name] else TrainConfig
    for seed in range(CASES // 2):
        path.write_bytes(mutated(RECIPES[name].encode(), seed)[:MAX_BYTES])
        right_or_refused(lambda: load_config(model, path))


@pytest.mark.parametrize("name", RECIPES)
def test_any_value_in_a_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    model = EvaluateConfig if "variants" not in RECIPES[name] else TrainConfig
    for seed in range(CASES):
        rng, lines = random.Random(seed), RECIPES[name].splitlines()
        at = rng.choice([i for i, line in enumerate(lines) if ":" in line])
        lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(VALUES)
        path.write_text("\n".join(lines))
        right_or_refused(lambda: load_config(model, path))


@in_its_place
def test_something_else_in_place_of_a_config(what: str, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    replace_with(what, tmp_path / "configs" / "config.yaml")
    assert right_or_refused(lambda: load_config(TrainConfig, tmp_path / "configs" / "config.yaml")) is None


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(9), "stands for more than 20,000 values"),
        ("[" + "1," * 30_000 + "]", "stands for more than 20,000 values"),
        ("a: &a [*a]", "a value holds itself"),
        ("[" * 60_000, "nested more than 32 levels deep"),
        ("- " * 30_000, "nested more than 32 levels deep"),
        ("a: 2026-99-99", "a value cannot be read"),
        ("1: 2", "the key '1' is no text"),
        ("a: 1\na: 2", "the key 'a' is there twice"),
        ("a: b\0", "unacceptable character"),
        ("a: 0x" + "f" * 5000, "a whole number of more than 1000 characters"),
        ("a: " + ":".join(["59"] * 3000), "a whole number of more than 1000 characters"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    def parse() -> None:
        with pytest.raises(ValueError, match=message):
            parse_yaml(text)

    right_or_refused(parse)


def test_aliases_of_a_size_that_people_write() -> None:
    assert parse_yaml("a: &a {k: 1}\nb: {<<: *a, n: 2}") == {"a": {"k": 1}, "b": {"k": 1, "n": 2}}


def test_a_config_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="has more than 64 KiB"):
        load_config(TrainConfig, tmp_path / "config.yaml")


def test_a_grid_of_too_many_variants(tmp_path: Path) -> None:
    many = list(range(1, 101))
    path = tmp_path / "config.yaml"
    path.write_text(f"variants: [{{kind: topk, k: {many}, seed: {many}, num_latents: {many}}}]\nsteps: 1")
    with pytest.raises(UsageError, match="the grid stands for more than 1000 variants"):
        right = right_or_refused  # bounded, and the message is looked at below
        assert right(lambda: load_config(TrainConfig, path)) is None
        load_config(TrainConfig, path)


@pytest.mark.parametrize("setting", ["optimizer: {learning_rate: .inf}", "epochs: .nan", "epochs: .inf"])
def test_infinite_settings(setting: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"variants: [{{kind: topk}}]\nnum_latents: 99\n{setting}\n")
    with pytest.raises(UsageError, match="finite number"):
        load_config(TrainConfig, path)


def test_numbers_that_python_does_not_print(tmp_path: Path) -> None:
    path, huge = tmp_path / "config.yaml", "0x" + "f" * 5000
    path.write_text(f"variants: [{{kind: topk, k: -{huge}}}]\nnum_latents: 99\nsteps: 1")
    assert right_or_refused(lambda: load_config(TrainConfig, path)) is None
    path.write_text("variants: [{kind: topk, k: 4}]\nnum_latents: 99\nsteps: 1")
    overrides = [f"steps={huge}", "steps.a=1"]
    assert right_or_refused(lambda: load_config(TrainConfig, path, overrides)) is None


TOPK = {"variants": [{"kind": "topk", "k": 4}], "num_latents": 99, "steps": 1}


@pytest.mark.parametrize("seed", [10**26, -(10**26), 1 << 64])
def test_seeds_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(UsageError, match=r"seed: .*less than"):
        validate(TrainConfig, {**TOPK, "seed": abs(seed)}, "it")
    with pytest.raises(UsageError, match=r"variants\.0\.seed: "):
        validate(TrainConfig, {**TOPK, "variants": [{"kind": "topk", "k": 4, "seed": seed}]}, "it")
    for model in (EvaluateConfig, InterpretConfig):
        with pytest.raises(UsageError, match="seed: "):
            validate(model, {"seed": seed}, "it")


@pytest.mark.parametrize("seed", [-(1 << 63), -1, 0, (1 << 64) - 1])
def test_seeds_that_generators_take(seed: int) -> None:
    validate(TrainConfig, {**TOPK, "seed": seed}, "it")
    torch.Generator().manual_seed(seed)


def test_a_feature_choice_without_any_weight() -> None:
    variant = {"kind": "feature_choice", "k": 4, "zipf": {"alpha": 700, "beta": 20}}
    with pytest.raises(UsageError, match="take a smaller alpha"):
        validate(TrainConfig, {**TOPK, "variants": [variant]}, "it")
    fitting = validate(TrainConfig, {**TOPK, "variants": [variant | {"zipf": {}}]}, "it")
    with pytest.raises(UsageError, match="take a smaller alpha"):
        with_zipf(fitting, 700.0, 20.0)


def test_a_feature_choice_whose_last_latents_have_no_weight() -> None:
    steep = FeatureChoice(k=4, zipf={"alpha": 2e4, "beta": 0})
    (problem,) = zipf_problems(steep.zipf, 4, Plan(d_model=8, num_latents=99, batch_rows=64, num_steps=1))
    assert "set zipf.alpha to less" in problem


@pytest.mark.parametrize("index", ["²", "1" * 5000, "-1", "٣", ""])
def test_an_index_that_is_none(index: str) -> None:
    for key in (f"a.{index}", f"a.{index}.b"):
        with pytest.raises(UsageError, match="is no item of a list"):
            apply_override({"a": [{}, {}]}, f"{key}=1")
