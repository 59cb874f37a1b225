"""One file per kind of SAE. A file here is found by its presence: there is no list to edit."""

from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from ..variant import Variant


def _discover() -> dict[str, type[Variant]]:
    """Every concrete :class:`Variant` defined in a module of this folder, by its kind."""
    found: dict[str, type[Variant]] = {}
    for info in iter_modules(__path__):
        module = import_module(f".{info.name}", __name__)
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Variant)
                and value.__module__ == module.__name__
                and not isabstract(value)
            ):
                kind = get_args(value.model_fields["kind"].annotation)[0]
                assert kind not in found, f"{value} and {found[kind]} are both kind {kind!r}"
                found[kind] = value
    return found


VARIANTS = _discover()

if TYPE_CHECKING:
    AnyVariant = Variant
else:
    AnyVariant = Annotated[Union[tuple(VARIANTS.values())], Field(discriminator="kind")]  # noqa: UP007
