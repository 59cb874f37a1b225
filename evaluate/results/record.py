"""What all parts of the results of an evaluation have in common."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

if TYPE_CHECKING:  # it needs torch, and results are read without
    from ...distributed import Group

Item = TypeVar("Item")
Result = TypeVar("Result", bound="Record")


class Record(BaseModel):
    """A part of ``results.json``. Unknown keys are ignored.

    A later version may add some, and an older report still draws the rest. Whole numbers have 64 bits, so
    that all later steps can compute with them, except in the values of others, as a config.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    @field_validator("*")
    @classmethod
    def _check_whole_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name is None or Any not in get_args(cls.model_fields[info.field_name].annotation):
            _check_sizes(value)
        return value


def _check_sizes(value: Any) -> None:
    if isinstance(value, list | tuple):
        for inner in value:
            _check_sizes(inner)
    elif isinstance(value, dict):
        _check_sizes(list(value.values()))
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("a whole number has more than 64 bits")


def spread_records(
    group: "Group",
    items: Sequence[Item],
    measure: Callable[[Sequence[Item]], list[Result]],
    kind: type[Result],
) -> list[Result]:
    """The results of all ``items``, of which each process measures some (:meth:`.Group.spread`)."""
    if group.size == 1:
        return measure(items)

    def measure_some(some: Sequence[Item]) -> list[Any]:
        return [result.model_dump(mode="json") for result in measure(some)]

    return [kind.model_validate(found) for found in group.spread(items, measure_some)]
