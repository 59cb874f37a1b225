"""Values from YAML or Python -> a frozen config, with errors that name the place, the mistake and the fix."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import UsageError
from .frozen import FrozenModel

if TYPE_CHECKING:  # pydantic names it nowhere else
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

ModelT = TypeVar("ModelT", bound=BaseModel)
Place = tuple[int | str, ...]

MAX_DETAILS, MAX_PROBLEMS = 200, 20  # of pydantic, and of a message: a file of others may have a million
MAX_SHOWN = 80  # characters of a name or value

_EXPECTED = {  # types of pydantic's errors, in words
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping of settings",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "mapping_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "model_type": "a mapping of settings",
    "string_type": "a text",
    "tuple_type": "a list",
}
_LABELS = (  # with which pydantic's names for the members of a union begin
    *("chain[", "constrained-", "function-", "lax-or-strict", "list["),
    *("literal[", "nullable", "tagged-union", "tuple["),
)
_PHRASES = {  # parts of pydantic's messages -> plain words
    "Value error, ": "",
    "Input should be greater": "must be greater",
    "Input should be less": "must be less",
    "Input should be ": "expected ",
    "Tuple should have": "needs",
    "List should have": "needs",
    " after validation": "",
}


def validate(model: type[ModelT], values: Any, origin: str) -> ModelT:
    """``values``, a mapping or a ``model`` already, as ``model``.

    Args:
        origin: what the values are from, for the message.

    Raises:
        UsageError: one message that lists every problem.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explained(error, model, origin) from None


class _Explaining(ModelMetaclass):
    """Explains what is wrong with a call. Pydantic makes the settings within others without one."""

    def __call__(cls, *args: Any, **values: Any) -> Any:  # noqa: N805 - it is the class of a class
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _explained(error, cls, "what was given") from None  # type: ignore[arg-type]


class Settings(FrozenModel, metaclass=_Explaining):
    """Settings that people write in Python too: a wrong call raises the UsageError of :func:`validate`."""


def _explained(error: ValidationError, model: type[BaseModel], origin: str) -> UsageError:
    """One message that lists every problem."""
    problems = _problems(error.errors(include_url=False)[:MAX_DETAILS], model)
    listed = "\n".join(f"  - {problem}" for problem in problems[:MAX_PROBLEMS])
    if error.error_count() > MAX_DETAILS or len(problems) > MAX_PROBLEMS:
        listed += "\n  - and more"
    return UsageError(f"{origin} is not a valid {model.__name__}:\n{listed}")


def suggest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'a' or 'b'?)``, or nothing when no known name is close."""
    close = get_close_matches(name, list(known), n=3) if len(name) <= MAX_SHOWN else []
    return f" (did you mean {' or '.join(repr(c) for c in close)}?)" if close else ""


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a setting ``key`` that does not exist where ``known`` ones do."""
    valid = f"; known keys here: {', '.join(known)}" if known else ""
    return f"unknown key{suggest(key, known)}{valid}"


def _problems(details: list[ErrorDetails], model: type[BaseModel]) -> list[str]:
    """One line per setting: what the members of a union say of one value is joined."""
    by_place: dict[str, list[ErrorDetails]] = {}
    for detail in _causes(details):
        place = ".".join(str(part)[:MAX_SHOWN] for part in _named(detail["loc"], model))
        by_place.setdefault(place, []).append(detail)
    return [f"{place or '(top level)'}: {_explain_all(found, model)}" for place, found in by_place.items()]


def _explain_all(details: list[ErrorDetails], model: type[BaseModel]) -> str:
    """Several problems of one value are the members of a union that it could have been."""
    if len(details) == 1:
        return _explain(details[0], model) + _shown(details[0])
    literals = [d for d in details if d["type"] == "literal_error"]
    messages = [_explain(d, model) for d in details if d not in literals]
    messages += [f"expected {d['ctx']['expected']}" for d in literals]
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(other.removeprefix("expected ") for other in others)]) + _value(details[0])


def _shown(detail: ErrorDetails) -> str:
    """The value, where the message does not say it already."""
    silent = ("extra_forbidden", "union_tag_invalid", "literal_error", "missing", "union_tag_not_found")
    return "" if detail["type"] in silent else _value(detail)


def _value(detail: ErrorDetails) -> str:
    """`` (got ...)``, or nothing for a long value."""
    value = repr(detail.get("input"))
    return f" (got {value})" if len(value) < MAX_SHOWN else ""


def _causes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short only because their items are wrong."""
    places = [detail["loc"] for detail in details]

    def has_wrong_items(place: Place) -> bool:
        return any(len(loc) > len(place) and loc[: len(place)] == place for loc in places)

    return [d for d in details if d["type"] != "too_short" or not has_wrong_items(d["loc"])]


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        return unknown_key(key, _known_keys(model, detail["loc"][:-1]))
    if detail["type"] in ("union_tag_invalid", "literal_error"):
        expected = str(context.get("expected_tags") or context.get("expected", ""))
        got = str(context.get("tag", detail.get("input")))
        names = [name.strip(" '\"") for name in expected.replace(" or ", ", ").split(",")]
        return f"got {got[:MAX_SHOWN]!r}{suggest(got, names)}; expected one of {', '.join(names)}"
    if detail["type"] in ("missing", "union_tag_not_found"):
        key = str(context.get("discriminator", "")).strip("'")
        return f"the key {key!r} is required" if key else "this setting is required"
    message = f"expected {_EXPECTED[detail['type']]}" if detail["type"] in _EXPECTED else detail["msg"]
    for jargon, plain in _PHRASES.items():
        message = message.replace(jargon, plain)
    return message


def _named(location: Place, model: type[BaseModel]) -> Place:
    """``location`` as a user writes it: without pydantic's names for the members of a union.

    Those are labels, as ``constrained-int``, and the kinds that tell members apart.
    """
    candidates, kept, kind_is_known = [model], [], False
    for depth, part in enumerate(location):
        fields = _fields_at(candidates, part)
        tagged = [c for c in candidates if part in _kinds_of(c)]
        if tagged and not fields and not kind_is_known:
            candidates, kind_is_known = tagged, True
            continue
        last_unknown = depth == len(location) - 1 and depth > 0 and not _is_label(part)
        if isinstance(part, int) or fields or depth == 0 or last_unknown or not _is_label(part):
            kept.append(part)
        if fields:
            candidates, kind_is_known = [found for field in fields for found in _models_in(field)], False
    return tuple(kept)


def _is_label(part: int | str) -> bool:
    """Whether pydantic wrote this part of a place, not the user."""
    text = str(part)
    return text in ("int", "float", "str", "bool") or text.startswith(_LABELS)


def _known_keys(model: type[BaseModel], location: Place) -> list[str]:
    """Field names of the model that sits at ``location`` below ``model``."""
    candidates: list[Any] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = _fields_at(candidates, part)
        if fields:
            candidates = [found for field in fields for found in _models_in(field)]
        else:  # a union tag: keep the members of the union that answer to it
            candidates = [c for c in candidates if part in _kinds_of(c)] or candidates
    return sorted({name for c in candidates if _is_model(c) for name in c.model_fields})


def _fields_at(candidates: Iterable[Any], part: int | str) -> list[Any]:
    return [c.model_fields[part].annotation for c in candidates if _is_model(c) and part in c.model_fields]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kinds_of(model: Any) -> tuple[Any, ...]:
    if not _is_model(model) or "kind" not in model.model_fields:
        return ()
    return get_args(model.model_fields["kind"].annotation)


def _models_in(annotation: Any) -> list[Any]:
    if _is_model(annotation):
        return [annotation]
    known: Iterable[Any] = getattr(annotation, "known_models", ())  # an open union's, see train/variants
    return [*known, *(found for argument in get_args(annotation) for found in _models_in(argument))]
