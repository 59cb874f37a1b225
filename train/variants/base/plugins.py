"""Kinds of SAE that other installed packages bring: entry points of the group ``saecache.variants``.

The name of an entry point is the kind; it stands for the class. A package is imported only when its kind is
asked for, or when all kinds are listed: a broken one disturbs nobody who does not use it.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points

from ....common.errors import UsageError
from .variant import Variant

GROUP = "saecache.variants"


class Kinds(dict[str, type[Variant]]):
    """Classes by their kind: the built-in ones, and those of other packages once somebody asked for them.

    ``kinds[name]`` and ``name in kinds`` import the package that brings the kind ``name``; iterating does not
    import anything.

    Args:
        check: returns the kind of a class, or raises ``TypeError`` with what is wrong with it.
    """

    def __init__(self, built_in: dict[str, type[Variant]], check: Callable[[type[Variant]], str]) -> None:
        super().__init__(built_in)
        self.built_in = frozenset(built_in)
        self._check = check

    def __contains__(self, kind: object) -> bool:
        return super().__contains__(kind) or (isinstance(kind, str) and self._load(kind))

    def __missing__(self, kind: str) -> type[Variant]:
        if not self._load(kind):
            raise KeyError(kind)
        return self[kind]

    def load_all(self) -> dict[str, str]:
        """Import every package that brings kinds.

        Returns:
            kind -> why it cannot be used, for those that are broken.
        """
        problems = {}
        for kind in sorted({point.name for point in _entry_points()}):
            try:
                self._load(kind)
            except UsageError as error:
                problems[kind] = str(error)
            if kind in self.built_in:
                brings = " and ".join(map(_describe, _entry_points(kind)))
                problems[kind] = f"{brings}: {kind!r} is a kind of saecache itself, which is used"
        return problems

    def _load(self, kind: str) -> bool:
        """Whether there is such a kind now.

        Raises:
            UsageError: a package brings it, and it cannot be used.
        """
        if super().__contains__(kind):
            return True
        points = list(_entry_points(kind))
        if not points:
            return False
        if len(points) > 1:
            raise UsageError(
                f"the kind {kind!r} comes from {' and from '.join(map(_describe, points))}: uninstall all "
                "but one of these packages"
            )
        try:
            found = points[0].load()
            if not (isinstance(found, type) and issubclass(found, Variant)):
                raise TypeError(f"expected a subclass of Variant, got {found!r:.80}")
            if (own := self._check(found)) != kind:
                raise TypeError(f"its class is of kind {own!r}: the entry point must have that name")
        except Exception as error:
            raise UsageError(
                f"the kind {kind!r} comes from {_describe(points[0])}, which cannot be used: "
                f"{type(error).__name__}: {error}; repair or uninstall that package"
            ) from error
        self[kind] = found
        return True


def _entry_points(kind: str | None = None) -> Iterator[EntryPoint]:
    """Those of all installed packages, or of those that bring ``kind``; each once."""
    found = entry_points(group=GROUP) if kind is None else entry_points(group=GROUP, name=kind)
    yield from {(point.name, point.value): point for point in found}.values()


def _describe(point: EntryPoint) -> str:
    package = f"the package {point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
    return f"{package} ({point.value})"
