"""``key.sub=value`` overrides of nested settings, as ``--set`` takes them."""

from typing import Any

from ..common.errors import UsageError
from .yaml_text import parse_yaml


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one ``key.sub=value`` in nested ``values``, in place. The number after a list's last item appends.

    Raises:
        UsageError: no ``=`` in it, or the path does not exist as a mapping or a list.
    """
    key, separator, raw = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set expects key.sub=value, got {override!r}")
    try:
        value = parse_yaml(raw)
    except ValueError:
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
        if last == str(len(target)):
            target.append(value)
        else:
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
    is_number = part.isascii() and part.isdigit() and len(part) < 20  # int() refuses ², and 5000 digits
    if not is_number or int(part) >= len(target):
        items = "the list there is empty" if not target else f"its items are 0 to {len(target) - 1}"
        raise UsageError(
            f"--set {where}: {part!r} is no item of a list; {items}, and {len(target)}=VALUE appends one"
        )
    return int(part)
