"""Counts as people write them, and sizes as people read them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from saecache.common.counts import Count, format_bytes

COUNT = TypeAdapter(Count)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (7, 7),
        ("20k", 20_000),
        ("1.5M", 1_500_000),
        ("2B", 2 * 10**9),
        ("1e5", 100_000),
        ("1.25e3", 1_250),
        ("20,000", 20_000),
        ("20_000", 20_000),
        (" 12 ", 12),
        (1e5, 100_000),
        ("123456789012345678901", 123456789012345678901),
    ],
)
def test_counts_as_people_write_them(written: object, number: int) -> None:
    assert COUNT.validate_python(written) == number


@pytest.mark.parametrize("written", ["many", "1.5", "0.5k1", "-3k", "1e400", "", "k", None, 1.5, "1 2"])
def test_what_is_no_count(written: object) -> None:
    with pytest.raises(ValidationError):
        COUNT.validate_python(written)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (900, "900 bytes"),
        (1 << 10, "1 KiB"),
        (1_600_000, "1.53 MiB"),
        (12 << 30, "12 GiB"),
    ],
)
def test_sizes_as_people_read_them(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
