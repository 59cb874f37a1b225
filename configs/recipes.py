"""The recipes shipped in the wheel: ``configs/<kind>/*.yaml`` of the kinds in :data:`KINDS`."""

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from ..common.errors import UsageError
from ..common.validation import suggest

KINDS = ("harvest", "train", "papers", "evaluate", "interpret", "synthetic", "doctor")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One shipped YAML file. ``summary`` is its first comment line."""

    kind: str
    name: str
    text: str

    @property
    def summary(self) -> str:
        first = self.text.splitlines()[0] if self.text else ""
        return first.removeprefix("#").strip() if first.startswith("#") else ""


def list_recipes(kind: str | None = None) -> list[Recipe]:
    """Every shipped recipe, sorted by kind and name; ``kind`` keeps one of :data:`KINDS`."""
    found = []
    for folder_name in KINDS if kind is None else (kind,):
        folder: Traversable = files(__package__).joinpath(folder_name)
        if not folder.is_dir():
            continue
        for entry in sorted(folder.iterdir(), key=lambda item: item.name):
            if entry.name.endswith(".yaml"):
                name = entry.name.removesuffix(".yaml")
                found.append(Recipe(kind=folder_name, name=name, text=entry.read_text("utf-8")))
    return found


def find_recipe(name: str, kinds: tuple[str, ...] = KINDS) -> Recipe:
    """The recipe called ``name`` or ``kind/name`` among ``kinds``.

    Raises:
        UsageError: there is none, or several kinds have one of that name.
    """
    wanted = name.removesuffix(".yaml")
    recipes = [recipe for kind in kinds for recipe in list_recipes(kind)]
    found = [r for r in recipes if wanted in (r.name, f"{r.kind}/{r.name}")]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{r.kind}/{r.name}" for r in found)
        raise UsageError(f"{name!r} names several recipes; write one of {choices}")
    others = {r.kind for kind in KINDS for r in list_recipes(kind) if wanted == r.name}
    if others:
        raise UsageError(f"{name!r} is a recipe for {' and '.join(sorted(others))}, not for {kinds[0]}")
    raise UsageError(
        f"no recipe {name!r}{suggest(wanted, [r.name for r in recipes])}; 'saecache recipes' lists them"
    )
