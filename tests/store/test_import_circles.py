"""Modules of the store import one another in one direction, so that each can be read without the next."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import saecache

ROOT = Path(saecache.__file__).parent


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Those of ``modules`` that a file imports, at any depth of its code and for types too."""
    package = ("saecache", *path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found & modules


@pytest.mark.parametrize("folder", ["store", "store/remote"])
def test_no_module_imports_what_imports_it(folder: str) -> None:
    files = {
        ".".join(("saecache", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py"
    }
    graph = {name: imported_modules(path, set(files)) for name, path in files.items()}
    assert sum(map(len, graph.values())) > len(graph)  # they were found
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
