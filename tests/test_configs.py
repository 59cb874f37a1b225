"""Every shipped recipe loads, every setting is read somewhere, and mistakes are told with the way out."""

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

import saecache
from saecache.common.counts import parse_count
from saecache.common.errors import UsageError
from saecache.configs import list_recipes, load_config
from saecache.configs.loading import setting_names
from saecache.configs.overrides import apply_override
from saecache.doctor import DoctorConfig
from saecache.evaluate import EvaluateConfig
from saecache.evaluate.judge import InterpretConfig
from saecache.evaluate.synthetic import SyntheticConfig
from saecache.harvest import HarvestConfig
from saecache.train import TrainConfig

ROOT = Path(saecache.__file__).parent
PACKAGES = ("store", "harvest", "train", "evaluate", "doctor")
CLASS_OF_KIND = {
    "harvest": HarvestConfig,
    "train": TrainConfig,
    "papers": TrainConfig,
    "evaluate": EvaluateConfig,
    "interpret": InterpretConfig,
    "synthetic": SyntheticConfig,
    "doctor": DoctorConfig,
}


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda r: f"{r.kind}/{r.name}")
def test_recipe_loads_and_says_what_it_is(recipe) -> None:
    config = load_config(CLASS_OF_KIND[recipe.kind], f"{recipe.kind}/{recipe.name}", kinds=(recipe.kind,))
    assert recipe.summary
    assert type(config).model_validate(config.model_dump()) == config


def test_the_ordered_recipes_are_there() -> None:
    names = {recipe.name for recipe in list_recipes("harvest")}
    assert "demo" in names
    for model in ("pythia-160m", "gpt2", "qwen3", "pythia-2.8b"):
        assert any(name.startswith(model) for name in names), (
            f"no harvest recipe for {model}: {sorted(names)}"
        )


def config_classes() -> list[type[BaseModel]]:
    found = {}
    for package in PACKAGES:
        folder = importlib.import_module(f"saecache.{package}")
        for info in pkgutil.walk_packages(folder.__path__, f"saecache.{package}."):
            if info.name.startswith("saecache.harvest.builtin.train_"):
                continue
            module = importlib.import_module(info.name)
            for value in vars(module).values():
                if (
                    isinstance(value, type)
                    and issubclass(value, BaseModel)
                    and value.__module__.startswith("saecache.")
                    and value.model_config.get("extra") == "forbid"
                ):
                    found[f"{value.__module__}.{value.__name__}"] = value
    return list(found.values())


def attributes_read() -> set[object]:
    read: set[object] = set()
    for package in (*PACKAGES, "."):
        pattern = "*.py" if package == "." else "**/*.py"
        for path in (ROOT / package).glob(pattern):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
                elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                    read.add(node.slice.value)  # as a field of parsed JSON
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":
                    read |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return read


def test_every_setting_is_read_somewhere() -> None:
    classes = config_classes()
    assert {HarvestConfig, TrainConfig} <= set(classes)
    read = attributes_read()
    unread = [
        f"{c.__name__}.{f}" for c in classes for f in c.model_fields if f not in read and not is_tag(c, f)
    ]
    assert not unread


def is_tag(config_class: type[BaseModel], field: str) -> bool:
    """A field with one possible value (``kind``, a format version): validation reads it."""
    return len(get_args(config_class.model_fields[field].annotation)) == 1


def test_configs_are_frozen_and_refuse_unknown_keys() -> None:
    for config_class in config_classes():
        assert config_class.model_config.get("frozen"), config_class


def test_unknown_recipe_suggests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'demo'"):
        load_config(HarvestConfig, "dmeo")


def test_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"sead: unknown key \(did you mean 'seed'\?\); known keys here: .*seed"
    ):
        load_config(HarvestConfig, "demo", ["sead=3"])


def test_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(
        UsageError, match=r"(?s)got 'tokp'.*did you mean 'topk'.*expected one of .*batch_topk"
    ):
        load_config(TrainConfig, "demo", ["variants.0.kind=tokp"], kinds=("train",))


def test_a_wrong_item_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("num_latents: 64\nsteps: 1\nvariants: [{kind: topk, k: -1}]\n")
    with pytest.raises(UsageError) as error:
        load_config(TrainConfig, tmp_path / "one.yaml")
    assert str(error.value).count("\n  - ") == 1
    (tmp_path / "none.yaml").write_text("num_latents: 64\nsteps: 1\nvariants: []\n")
    with pytest.raises(UsageError, match=r"variants: .* at least 1 item"):
        load_config(TrainConfig, tmp_path / "none.yaml")


def test_overrides_reach_nested_settings_and_items() -> None:
    values = {"a": {"b": 1}, "items": [{"k": 1}, {"k": 2}]}
    apply_override(values, "a.b=2")
    apply_override(values, "new.deep=[1, 2]")
    apply_override(values, "items.1.k=32")
    apply_override(values, "items.2={k: 64}")
    assert values == {"a": {"b": 2}, "new": {"deep": [1, 2]}, "items": [{"k": 1}, {"k": 32}, {"k": 64}]}


def test_a_place_in_a_message_can_be_set() -> None:
    """Pydantic puts the kind of a variant into it (``variants.1.topk.k``), which ``--set`` does not take."""
    overrides = ["variants.1={kind: topk, k: many}"]
    with pytest.raises(UsageError, match=r"- variants\.1\.k: expected a whole number \(got 'many'\)"):
        load_config(TrainConfig, "topk", overrides, kinds=("train",))
    config = load_config(TrainConfig, "topk", [*overrides, "variants.1.k=8"], kinds=("train",))
    assert [variant.k for variant in config.variants][1] == 8


@pytest.mark.parametrize("override", ["novalue", "=3", "items.7.k=1", "items.x.k=1", "a.b.c=1"])
def test_bad_overrides_are_told(override: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        apply_override({"a": {"b": 1}, "items": [{"k": 1}]}, override)


@pytest.mark.parametrize(
    ("package", "model"),
    [
        ("harvest", HarvestConfig),
        ("train", TrainConfig),
        ("evaluate", EvaluateConfig),
        ("doctor", DoctorConfig),
        ("evaluate.synthetic", SyntheticConfig),
    ],
)
def test_names_in_the_source_are_those_of_the_class(package: str, model: type[BaseModel]) -> None:
    assert setting_names(package, model.__name__) == set(model.model_fields)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("steps: 1\nlog: {every_steps: 5, every_steps: 6}\n")
    with pytest.raises(UsageError, match=r"(?s)not valid YAML: .*'every_steps' is there twice.*in line 2"):
        load_config(TrainConfig, path)
    path.write_text("a: &x {k: 1}\nb: {<<: *x, k: 2}\n")  # a merge that is overridden is no duplicate
    with pytest.raises(UsageError, match="a: unknown key"):
        load_config(TrainConfig, path)


def test_files_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: Käse".encode("latin-1"))
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 7 is 0xe4\): save it as UTF-8"):
        load_config(TrainConfig, tmp_path / "latin.yaml")
    with pytest.raises(UsageError, match="is a folder, not a file, and no recipe"):
        load_config(TrainConfig, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.learning_rate=fast",
            r"optimizer\.learning_rate: expected a number or 'auto' \(got 'fast'\)",
        ),
        ("optimizer.learning_rate=-1", r"optimizer\.learning_rate: must be greater than 0 or 'auto'"),
        ("schedule.warmup=yes please", r"schedule\.warmup: expected a .*number.* \(got 'yes please'\)"),
        ("batch_rows=many", r"batch_rows: expected a whole number \(got 'many'\)"),
        ("batch_rows=0", r"batch_rows: must be greater than 0 \(got 0\)"),
        ("batch_rows=1.5", r"batch_rows: expected a whole number"),
        ("log.progress=perhaps", r"log\.progress: expected true or false \(got 'perhaps'\)"),
        ("log=3", r"log: expected a mapping of settings \(got 3\)"),
        ("variants=3", r"variants: expected a list \(got 3\)"),
        ("variants.0.name=3", r"variants\.0\.name: expected a text"),
    ],
)
def test_problems_are_in_plain_words(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_config(TrainConfig, "topk", [override], kinds=("train",))
    for jargon in ("constrained", "literal[", "Input should", "instance of", "float", "union", "dictionary"):
        assert jargon not in str(error.value)
    assert str(error.value).count("\n  - ") == 1


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("20k", 20_000),
        ("1e5", 100_000),
        ("'20,000'", 20_000),
        ("1.5M", 1_500_000),
        ("2_000", 2_000),
        ("1e5.", None),
    ],
)
def test_counts_as_people_write_them(written: str, count: int | None) -> None:
    if count is None:
        with pytest.raises(UsageError, match="expected a whole number"):
            load_config(TrainConfig, "topk", [f"num_rows={written}"], kinds=("train",))
        return
    assert load_config(TrainConfig, "topk", [f"num_rows={written}"], kinds=("train",)).num_rows == count


def test_a_count_must_be_whole() -> None:
    assert parse_count(1e5) == 100_000
    assert [parse_count(value) for value in (1.5, None, "many", [3])] == [1.5, None, "many", [3]]
    with pytest.raises(ValueError, match=r"expected a whole number, got 1\.5"):
        parse_count("1.5")


def test_bad_yaml_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_config(HarvestConfig, path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(UsageError, match="must hold a mapping"):
        load_config(HarvestConfig, path)


@pytest.mark.parametrize(
    ("override", "left"),
    [("steps=7", {"steps": 7}), ("num_rows=9", {"num_rows": 9}), ("epochs=2", {"epochs": 2.0})],
)
def test_an_overridden_length_replaces_that_of_the_recipe(override: str, left: dict[str, float]) -> None:
    config = load_config(TrainConfig, "topk", [override], kinds=("train",))
    lengths = {name: getattr(config, name) for name in ("epochs", "steps", "num_rows")}
    assert {name: value for name, value in lengths.items() if value is not None} == left


def test_two_lengths_on_the_command_line_are_refused() -> None:
    with pytest.raises(UsageError, match="exactly one of epochs, steps and num_rows"):
        load_config(TrainConfig, "topk", ["steps=7", "epochs=2"], kinds=("train",))


def test_an_alternative_set_to_null_replaces_nothing() -> None:
    assert load_config(TrainConfig, "topk", ["steps=null"], kinds=("train",)).epochs is not None
