"""A YAML file or a shipped recipe, with ``key.sub=value`` overrides -> a frozen config."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..common.errors import UsageError
from ..common.lookups import exists, is_file, is_folder
from ..common.validation import unknown_key, validate
from ..store.untrusted_files import read_text
from .overrides import apply_override
from .recipes import KINDS, find_recipe
from .yaml_text import MAX_BYTES, parse_yaml

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(
    model: type[ConfigT],
    name_or_path: str | Path,
    overrides: Iterable[str] = (),
    *,
    kinds: tuple[str, ...] = ("harvest",),
) -> ConfigT:
    """Read a YAML file, or a shipped recipe by name, apply ``overrides`` and validate.

    Args:
        model: the config class.
        name_or_path: a path to a YAML file, or the name of a recipe of one of ``kinds``.
        overrides: ``key.sub=value`` strings; values are YAML (``--set text.max_documents=100``),
            list items are addressed by number (``variants.0.k=16``), or all of them (``variants.*.k=16``).
            One of the model's ``alternatives`` replaces the others: ``steps=100`` the recipe's ``epochs``.

    Raises:
        UsageError: no such file or recipe, bad YAML, unknown key or kind (with suggestions), bad value.
    """
    return read_settings(name_or_path, overrides, kinds=kinds).validate(model)


@dataclass(frozen=True)
class Settings:
    """Settings as they were read, before a config class has checked them.

    Attributes:
        values: of the file or recipe, with the overrides in place.
        origin: the file or recipe, for messages.
        overridden: the keys that the overrides set.
    """

    values: dict[str, Any]
    origin: str
    overridden: frozenset[str]

    def check_names(self, package: str, class_name: str) -> None:
        """Refuse top-level keys that the config class ``class_name`` of ``package`` does not have.

        The class is looked up in the source files: importing it takes seconds where it needs torch.

        Raises:
            UsageError: an unknown key, with the known ones.
        """
        known = setting_names(package, class_name)
        unknown = [key for key in self.values if known and key not in known]
        if unknown:
            listed = "\n".join(f"  - {key}: {unknown_key(key, sorted(known))}" for key in unknown)
            raise UsageError(f"{self.origin} is not a valid {class_name}:\n{listed}")

    def validate(self, model: type[ConfigT]) -> ConfigT:
        """The settings as ``model``.

        Raises:
            UsageError: one message that lists every problem.
        """
        values = dict(self.values)
        for group in getattr(model, "alternatives", ()):  # settings that exclude each other
            if any(values.get(name) is not None for name in self.overridden.intersection(group)):
                for name in set(group) - self.overridden:
                    values.pop(name, None)
        return validate(model, values, self.origin)


def read_settings(
    name_or_path: str | Path, overrides: Iterable[str] = (), *, kinds: tuple[str, ...] = KINDS
) -> Settings:
    """Read a YAML file or a recipe and apply ``overrides``; no config class is needed for that.

    Raises:
        UsageError: no such file or recipe, bad YAML, an override that cannot be applied.
    """
    text, origin = _read(name_or_path, kinds)
    values = _parse(text, origin)
    overrides = list(overrides)
    for override in overrides:
        apply_override(values, override)
    return Settings(values, origin, frozenset(override.partition("=")[0] for override in overrides))


def setting_names(package: str, class_name: str) -> set[str]:
    """Names of the settings of a config class, from the source of ``package``; none where it is not found."""
    spec = find_spec(f"..{package}", __package__)
    if spec is None or spec.origin is None:
        return set()
    folders = spec.submodule_search_locations
    paths = sorted(Path(folders[0]).rglob("*.py")) if folders else [Path(spec.origin)]
    for path in paths:
        source = path.read_text("utf-8") if path.is_file() else ""
        if f"\nclass {class_name}(" not in source:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                fields = (item for item in node.body if isinstance(item, ast.AnnAssign))
                return {ast.unparse(f.target) for f in fields if "ClassVar" not in ast.unparse(f.annotation)}
    return set()


def _read(name_or_path: str | Path, kinds: tuple[str, ...]) -> tuple[str, str]:
    path = Path(name_or_path)
    if is_file(path):
        return read_text(path, MAX_BYTES), str(path)
    try:
        recipe = find_recipe(str(name_or_path), kinds)
    except UsageError as error:
        what = (
            "a folder, not a file"
            if is_folder(path)
            else "no regular file"
            if exists(path)
            else "not a file here"
        )
        raise UsageError(f"{str(name_or_path)!r} is {what}, and {error}") from None
    return recipe.text, f"recipe {recipe.name}"


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{origin} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{origin} must hold a mapping of settings, got {type(values).__name__}")
    return values
