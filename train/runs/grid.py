"""Lists in a variant's settings are a grid: ``{kind: topk, k: [4, 8], seed: [0, 1]}`` asks for four of them.

A setting that is a list by its nature (``betas``, ``prefixes``) is left as it is. The first list varies
slowest.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from ..variants import VARIANTS

PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.]+)\}")


def expand(entries: Any) -> Any:
    """The items of ``variants`` of a config with every grid spelled out; what is no mapping stays as it is.

    In a ``name``, ``{k}`` or ``{optimizer.learning_rate}`` stands for that setting of the variant.

    Raises:
        ValueError: an empty list in a grid; a name with a setting in braces that the variant does not give.
    """
    if not isinstance(entries, list | tuple):
        return entries
    return [variant for i, entry in enumerate(entries) for variant in _variants_of(entry, i)]


def difference(a: BaseModel, b: BaseModel) -> str | None:
    """The first setting, as ``key.sub``, in which two variants differ; None when they are equal."""
    first, second = dict(_leaves(a.model_dump())), dict(_leaves(b.model_dump()))
    paths = [path for path in {**first, **second} if first.get(path) != second.get(path)]
    return paths[0] if paths else None


def _variants_of(entry: Any, i: int) -> Iterator[Any]:
    if not isinstance(entry, Mapping):
        yield entry
        return
    for kind in _items(entry.get("kind"), f"variants.{i}.kind"):
        of_kind = {**entry, "kind": kind} if "kind" in entry else dict(entry)
        known = isinstance(kind, str) and kind in VARIANTS
        for variant in _expanded(of_kind, VARIANTS[kind], f"variants.{i}") if known else [of_kind]:
            yield _named(variant, f"variants.{i}.name")


def _expanded(value: Any, annotation: Any, place: str) -> list[Any]:
    """Every value that ``value`` of a setting of type ``annotation`` asks for."""
    if isinstance(value, list | tuple) and not _takes_lists(annotation):
        return [one for item in _items(value, place) for one in _expanded(item, annotation, place)]
    if not isinstance(value, Mapping) or (model := _model_of(annotation, value)) is None:
        return [value]
    fields = model.model_fields
    choices = [  # an unknown key is left for validation to tell
        _expanded(item, fields[key].annotation, f"{place}.{key}") if key in fields else [item]
        for key, item in value.items()
    ]
    return [dict(zip(value, chosen, strict=True)) for chosen in product(*choices)]


def _items(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value]
    if not value:
        raise ValueError(f"{place}: an empty list asks for no variant; give it a value, or leave it out")
    return list(value)


def _takes_lists(annotation: Any) -> bool:
    if get_origin(annotation) in (list, tuple):
        return True
    return any(_takes_lists(argument) for argument in get_args(annotation))


def _model_of(annotation: Any, value: Mapping[str, Any]) -> type[BaseModel] | None:
    """The model that ``value`` is settings of: among several, the one of its ``kind``."""
    models = list(_models_in(annotation))
    tagged = [m for m in models if "kind" in m.model_fields and value.get("kind") in _tags(m)]
    return next(iter(tagged or models), None)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _named(variant: dict[str, Any], place: str) -> dict[str, Any]:
    name = variant.get("name")
    if not isinstance(name, str) or "{" not in name:
        return variant
    given = dict(_leaves(variant))

    def setting(found: re.Match[str]) -> str:
        if found[1] not in given:
            known = ", ".join(sorted(given.keys() - {"name"}))
            raise ValueError(f"{place}: {name!r} names {found[1]!r}; this variant gives {known}")
        return str(given[found[1]])

    return {**variant, "name": PLACEHOLDER.sub(setting, name)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
