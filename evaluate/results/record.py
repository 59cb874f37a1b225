"""What all parts of the results of an evaluation have in common."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # it needs torch, and results are read without
    from ...distributed import Group

Item = TypeVar("Item")
Result = TypeVar("Result", bound="Record")


class Record(BaseModel):
    """A part of ``results.json``. Unknown keys are ignored.

    A later version may add some, and an older report still draws the rest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


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
