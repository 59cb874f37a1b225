"""YAML text -> plain values, in bounded time and memory whoever wrote it.

A few aliases of aliases stand for billions of values, and PyYAML recurses into what is nested. Both are
counted before a value is made.
"""

from typing import Any

import yaml

MAX_BYTES = 1 << 16  # a thousand variants of a grid take a few lines; PyYAML reads some 100 KB a second
MAX_VALUES = 20_000  # with every alias counted as often as it is used
MAX_DEPTH = 32
MAX_INTEGER_CHARACTERS = 1000  # Python prints no number of more than 4300 digits, which messages would

_MERGE, _STRING, _INTEGER = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "str", "int"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; mappings have strings as keys, each once.

    Raises:
        ValueError: it is not YAML, stands for more than :data:`MAX_VALUES` values, is nested more than
            :data:`MAX_DEPTH` levels deep, holds itself, has a key that is no text or is there twice, or has a
            whole number of more than :data:`MAX_INTEGER_CHARACTERS`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace('"<unicode string>", ', "")) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # what PyYAML raises for a value like 2026-99-99 or !!int x
        raise ValueError(f"a value cannot be read ({str(error)[:200]})") from None


def _count(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """The number of values that ``node`` stands for; ``known`` has None for the nodes above it."""
    if node in known:
        if (count := known[node]) is None:
            raise yaml.composer.ComposerError(None, None, "a value holds itself", node.start_mark)
        return count
    known[node] = None
    total = 1
    for inner in _parts(node):
        total += _count(inner, known)
        if total > MAX_VALUES:
            raise _too_many(node.start_mark)
    known[node] = total
    return total


def _too_many(mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, f"it stands for more than {MAX_VALUES:,} values", mark)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys: the later one would silently replace the earlier."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._composed = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._composed += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._composed > MAX_VALUES:
            raise _too_many(mark)
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if node.tag == _INTEGER and len(node.value) > MAX_INTEGER_CHARACTERS:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"a whole number of more than {MAX_INTEGER_CHARACTERS} characters",
                node.start_mark,
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if key.tag != _STRING:
                raise yaml.composer.ComposerError(
                    "in a mapping",
                    node.start_mark,
                    f"the key {str(key.value)[:40]!r} is no text: write it in quotes",
                    key.start_mark,
                )
            if key.value in seen:
                raise yaml.composer.ComposerError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return node
