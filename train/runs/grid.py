"""Expand lists in a variant's settings: ``{kind: topk, k: [4, 8], seed: [0, 1]}`` stands for four variants.

A setting whose type is a list (``betas``, ``prefixes``) does not expand. The first list varies slowest.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, product
from math import prod
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from ..variants import VARIANTS

MAX_VARIANTS = 1000
_TOO_MANY = f"{{}}: the grid stands for more than {MAX_VARIANTS} variants: split it into several runs"
PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.]+)\}")


def expand(entries: Any) -> Any:
    """Expand every grid among the ``variants`` of a config; entries that are no mappings are kept.

    In a ``name``, ``{k}`` or ``{optimizer.learning_rate}`` stands for that setting of the variant.

    Raises:
        ValueError: a grid has an empty list or stands for more than :data:`MAX_VARIANTS` variants, or a name
            has in braces a setting that the variant lacks.
    """
    if not isinstance(entries, list | tuple):
        return entries
    every = (variant for i, entry in enumerate(entries) for variant in _expand_entry(entry, i))
    expanded = list(islice(every, MAX_VARIANTS + 1))
    if len(expanded) > MAX_VARIANTS:
        raise ValueError(_TOO_MANY.format("variants"))
    return expanded


def differing_settings(variants: Iterable[BaseModel]) -> list[str]:
    """The settings, as ``key.sub``, that are not the same in all variants."""
    every = [dict(_leaves(variant.model_dump())) for variant in variants]
    paths = dict.fromkeys(path for leaves in every for path in leaves)
    return [path for path in paths if any(leaves.get(path) != every[0].get(path) for leaves in every)]


def _expand_entry(entry: Any, i: int) -> Iterator[Any]:
    if not isinstance(entry, Mapping):
        yield entry
        return
    for kind in _items(entry.get("kind"), f"variants.{i}.kind"):
        of_kind = {**entry, "kind": kind} if "kind" in entry else dict(entry)
        known = isinstance(kind, str) and kind in VARIANTS
        for variant in _expand_value(of_kind, VARIANTS[kind], f"variants.{i}") if known else [of_kind]:
            yield _fill_name(variant, f"variants.{i}.name")


def _expand_value(value: Any, annotation: Any, place: str) -> list[Any]:
    """All values that ``value`` stands for, in a setting of type ``annotation``."""
    if isinstance(value, list | tuple) and not _takes_lists(annotation):
        return [one for item in _items(value, place) for one in _expand_value(item, annotation, place)]
    if not isinstance(value, Mapping) or (model := _model_of(annotation, value)) is None:
        return [value]
    fields = model.model_fields
    choices = [  # validation reports unknown keys later
        _expand_value(item, fields[key].annotation, f"{place}.{key}") if key in fields else [item]
        for key, item in value.items()
    ]
    if prod(map(len, choices)) > MAX_VARIANTS:
        raise ValueError(_TOO_MANY.format(place))
    return [dict(zip(value, chosen, strict=True)) for chosen in product(*choices)]


def _items(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value]
    if not value:
        raise ValueError(f"{place}: an empty list gives no variant; put a value in, or leave {place} out")
    return list(value)


def _takes_lists(annotation: Any) -> bool:
    if get_origin(annotation) in (list, tuple):
        return True
    return any(_takes_lists(argument) for argument in get_args(annotation))


def _model_of(annotation: Any, value: Mapping[str, Any]) -> type[BaseModel] | None:
    """The model whose settings ``value`` holds; ``kind`` decides among several."""
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


def _fill_name(variant: dict[str, Any], place: str) -> dict[str, Any]:
    name = variant.get("name")
    if not isinstance(name, str) or "{" not in name:
        return variant
    given = dict(_leaves(variant))

    def value_of(found: re.Match[str]) -> str:
        if found[1] not in given:
            known = ", ".join(sorted(given.keys() - {"name"}))
            raise ValueError(f"{place}: {name!r} names {found[1]!r}, but this variant only sets {known}")
        return str(given[found[1]])

    return {**variant, "name": PLACEHOLDER.sub(value_of, name)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
