"""Numbers as people write them (``20k``, ``1e5``, ``20,000``), and sizes as people read them."""

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_WRITTEN = re.compile(r"(\d[\d_,]*(?:\.\d+)?(?:e\+?\d{1,2})?)\s*([kmb]?)", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def parse_count(value: Any) -> Any:
    """``20k``, ``1.5M``, ``1e5``, ``20,000`` and ``20_000`` as an int; anything else is returned unchanged.

    Raises:
        ValueError: a written number that is no whole number.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    match = _WRITTEN.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    number = Decimal(re.sub("[_,]", "", match[1])) * _FACTORS[match[2].lower()]
    if number != int(number):
        raise ValueError(f"expected a whole number, got {value}")
    return int(number)


Count = Annotated[int, BeforeValidator(parse_count)]
"""An int setting that may be written as 20k, 1.5M, 2B, 1e5, 20,000 or 20_000."""

PositiveCount = Annotated[Count, Field(gt=0, lt=1 << 62)]
"""One that int64 arithmetic and torch hold."""

Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
"""What torch's generators and ours take."""

StoredCount = Annotated[int, Field(ge=0, le=2**48)]
"""A count in a file, which may come from anybody: products of two such numbers do not overflow."""


def format_bytes(num_bytes: int) -> str:
    """A size in the largest unit of which there is at least one, with three digits: ``1.5 MiB``."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return (
                f"{num_bytes / unit:.3g} {name}"
                if num_bytes < 1000 * unit
                else f"{num_bytes // unit:,} {name}"
            )
    return f"{num_bytes} bytes"
