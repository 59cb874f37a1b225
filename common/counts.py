"""Counts as people write them: ``20k``, ``1e5``, ``20,000``, ``1.5M``."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_COUNT = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:e\+?[0-9]+)?)\s*([kmbgt]?)", re.IGNORECASE)


def parse_count(value: Any) -> Any:
    """The whole number that a text like ``20k`` or a float like 1e5 stands for; anything else unchanged.

    Raises:
        ValueError: the text stands for a number that is not whole.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    found = _COUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return value
    number = float(found[1].replace(",", "").replace("_", "")) * _FACTORS[found[2].lower()]
    if abs(number - round(number)) > 1e-6 * max(1.0, number):
        raise ValueError(f"expected a whole number, got {value!r}, which is {number:g}")
    return round(number)


Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number that may be written as ``20k``, ``1e5``, ``20,000`` or ``1.5M``."""

PositiveCount = Annotated[Count, Field(gt=0)]
"""A :data:`Count` of at least 1."""
