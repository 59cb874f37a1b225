"""The recipes shipped in the wheel: ``configs/{harvest,train,papers}/*.yaml``."""

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

KINDS = ("harvest", "train", "papers")


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
