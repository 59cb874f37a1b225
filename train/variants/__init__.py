"""The kinds of SAE, one file each. Every file in this folder is discovered; there is no list to edit.

Other installed packages may bring more, see :mod:`.base.plugins`.
"""

from collections.abc import Mapping
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Field, SerializeAsAny, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

from .base.plugins import Kinds
from .base.variant import Variant


def _discover() -> dict[str, type[Variant]]:
    """The subclasses of :class:`Variant` that the modules of this folder define, by their ``kind``."""
    found: dict[str, type[Variant]] = {}
    for info in iter_modules(__path__):
        module = import_module(f".{info.name}", __name__)
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Variant)
                and value.__module__ == module.__name__
                and "kind" in vars(value).get("__annotations__", {})
            ):
                found[kind_of(value, found)] = value
    return found


def kind_of(variant: type[Variant], others: Mapping[str, type[Variant]]) -> str:
    """The kind of a new class ``variant``, checked against those found before, ``others``.

    Raises:
        TypeError: the class has no single kind, lacks methods, or has the kind of another class.
    """
    where = f"{variant.__qualname__} in {variant.__module__}"
    kinds = get_args(variant.model_fields["kind"].annotation)
    if len(kinds) != 1 or variant.model_fields["kind"].default != kinds[0]:
        raise TypeError(f'{where}: declare its kind as  kind: Literal["NAME"] = "NAME"')
    if isabstract(variant):
        lacking = ", ".join(sorted(variant.__abstractmethods__))
        raise TypeError(f"{where} lacks {lacking}: see Variant in train/variants/base/variant.py")
    if kinds[0] in others:
        other = others[kinds[0]].__module__
        raise TypeError(f"{where} and {other} are both of kind {kinds[0]!r}: rename one of the kinds")
    return str(kinds[0])


VARIANTS = Kinds(_discover(), lambda variant: kind_of(variant, {}))


class _OfAnyPackage(WrapValidator):
    """Validates settings of kinds that are not built in; ``known_models`` are those that were asked for."""

    def __init__(self) -> None:
        super().__init__(self._validate)

    @property
    def known_models(self) -> list[type[Variant]]:
        return [variant for kind, variant in VARIANTS.items() if kind not in VARIANTS.built_in]

    def _validate(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        if not isinstance(kind, str) or kind in VARIANTS.built_in:
            return handler(value)
        if kind not in VARIANTS:  # the error lists all kinds
            VARIANTS.load_all()
        return TypeAdapter(_union_of(VARIANTS)).validate_python(value)


def _union_of(kinds: Mapping[str, type[Variant]]) -> Any:
    return Annotated[Union[tuple(kinds.values())], Field(discriminator="kind")]  # noqa: UP007


if TYPE_CHECKING:
    AnyVariant = Variant
else:
    AnyVariant = SerializeAsAny[Annotated[_union_of(VARIANTS), _OfAnyPackage()]]
