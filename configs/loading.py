"""YAML + ``key.sub=value`` overrides -> a frozen config, with errors that name the place and the fix."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..common.errors import UsageError
from .recipes import find_recipe, suggest

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
    text, origin = _read(name_or_path, kinds)
    values = _parse_yaml(text, origin)
    overrides = list(overrides)
    for override in overrides:
        apply_override(values, override)
    _drop_alternatives(model, values, {override.partition("=")[0] for override in overrides})
    return validate(model, values, origin)


def validate(model: type[ConfigT], values: Mapping[str, Any], origin: str) -> ConfigT:
    """``values`` as ``model``; every problem found is listed in one :class:`UsageError`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_explain(detail, model) for detail in _causes(error.errors())]
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UsageError(f"{origin} is not a valid {model.__name__}:\n{listed}") from None


def _read(name_or_path: str | Path, kinds: tuple[str, ...]) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.is_file():
        return path.read_text("utf-8"), str(path)
    try:
        recipe = find_recipe(str(name_or_path), kinds)
    except UsageError as error:
        raise UsageError(f"{str(name_or_path)!r} is not a file here, and {error}") from None
    return recipe.text, f"recipe {recipe.name}"


def _parse_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{origin} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{origin} must hold a mapping of settings, got {type(values).__name__}")
    return values


def _drop_alternatives(model: type[BaseModel], values: dict[str, Any], overridden: set[str]) -> None:
    """Of settings that exclude each other, those that were overridden replace the others, in place."""
    for group in getattr(model, "alternatives", ()):
        if any(values.get(name) is not None for name in overridden.intersection(group)):
            for name in set(group) - overridden:
                values.pop(name, None)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one ``key.sub=value`` in nested ``values``, in place.

    Raises:
        UsageError: no ``=`` in it, or the path does not exist as a mapping or a list.
    """
    key, separator, raw = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set expects key.sub=value, got {override!r}")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = raw
    above, star, below = key.partition(".*.")
    if star:
        for i in range(len(_list_at(values, above))):
            apply_override(values, f"{above}.{i}.{below}={raw}")
        return
    target: Any = values
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        target = _child(target, part, where)
    if isinstance(target, list):
        target[_list_index(target, last, key)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise UsageError(f"--set {key}: {'.'.join(parents)!r} is {target!r}, which has no keys below it")


def _child(target: Any, part: str, where: str) -> Any:
    if isinstance(target, list):
        return target[_list_index(target, part, where)]
    if not isinstance(target, dict):
        raise UsageError(f"--set {where}: the setting above it is {target!r}, which has no keys below it")
    if target.get(part) is None:
        target[part] = {}
    return target[part]


def _list_at(values: Any, key: str) -> list[Any]:
    for part in key.split("."):
        values = _child(values, part, key)
    if not isinstance(values, list):
        raise UsageError(f"--set {key}.*: expected a list there, got {values!r}")
    return values


def _list_index(target: list[Any], part: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(target):
        raise UsageError(f"--set {where}: expected an item number from 0 to {len(target) - 1}, got {part!r}")
    return int(part)


def _causes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short only because their items are wrong."""
    places = [detail["loc"] for detail in details]
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(
            len(loc) > len(detail["loc"]) and loc[: len(detail["loc"])] == detail["loc"] for loc in places
        )
    ]


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in detail["loc"]) or "(top level)"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, detail["loc"][:-1])
        key = str(detail["loc"][-1])
        valid = f"; known keys here: {', '.join(known)}" if known else ""
        return f"{place}: unknown key{suggest(key, known)}{valid}"
    if detail["type"] in ("union_tag_invalid", "literal_error"):
        expected = str(
            detail.get("ctx", {}).get("expected_tags") or detail.get("ctx", {}).get("expected", "")
        )
        got = str(detail.get("ctx", {}).get("tag", detail.get("input")))
        names = [name.strip(" '\"") for name in expected.replace(" or ", ", ").split(",")]
        return f"{place}: got {got!r}{suggest(got, names)}; expected one of {', '.join(names)}"
    if detail["type"] == "missing":
        return f"{place}: this setting is required"
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail.get("input"))
    return f"{place}: {message}" + (f" (got {shown})" if len(shown) < 80 else "")


def _known_keys(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Field names of the model that sits at ``location`` below ``model``."""
    candidates: list[Any] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [
            c.model_fields[part].annotation for c in candidates if _is_model(c) and part in c.model_fields
        ]
        if fields:
            candidates = [found for field in fields for found in _models_in(field)]
        else:  # a union tag: keep the members of the union that answer to it
            tagged = [c for c in candidates if part in _kinds_of(c)]
            candidates = tagged or candidates
    return sorted({name for c in candidates if _is_model(c) for name in c.model_fields})


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kinds_of(model: Any) -> tuple[Any, ...]:
    if not _is_model(model) or "kind" not in model.model_fields:
        return ()
    return get_args(model.model_fields["kind"].annotation)


def _models_in(annotation: Any) -> list[Any]:
    if _is_model(annotation):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
