"""Values as messages: in one part if they are short, else in two."""

import pytest

from saecache.distributed.messages import HEAD_BYTES, join_value, length_of_rest, split_value


@pytest.mark.parametrize("length", [0, 1, HEAD_BYTES - 2, HEAD_BYTES - 1, HEAD_BYTES, 5000])
def test_a_value_comes_back_whatever_its_length(length: int) -> None:
    value = "x" * length  # two quotes more as JSON
    head, rest = split_value(value)
    assert len(head) == 8 + HEAD_BYTES
    assert len(rest) == length_of_rest(head) == max(0, length + 2 - HEAD_BYTES)
    assert join_value(head, rest) == value


def test_a_character_may_lie_in_both_parts() -> None:
    value = {"é": ["𝄞" * 300, None, 1.5]}
    assert join_value(*split_value(value)) == value
