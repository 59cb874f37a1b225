"""The house rules that a reader relies on: who imports whom, what stays light, which settings are read."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import saecache

ROOT = Path(saecache.__file__).parent
LAYERS = {  # package -> the packages of ours it may import
    "common": set(),
    "distributed": {"common"},
    "store": {"common", "distributed"},
    "configs": {"common", "store"},
    "harvest": {"common", "store", "distributed"},
    "train": {"common", "store", "distributed"},
    "evaluate": {"common", "store", "train", "distributed"},
    "publishing": {"common", "store", "train", "evaluate"},
    "testing": {"common", "store", "train"},
    "doctor": {"common", "store", "harvest", "train"},
}
ROOMS = {  # folder in a package -> what beside it in the same folder it may import
    "harvest/text": {"builtin", "hub"},
    "harvest/model": {"builtin", "hub", "text"},
    "store/remote/downloads": set(),
    "store/remote/places": set(),
}


def source_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """What a file imports, relatively or absolutely, at any depth of its code: modules, and names in them."""
    found = set()
    package = ("saecache", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def imported_packages(path: Path) -> set[str]:
    """Top-level packages of ours that a file imports."""
    above = {"cli", "commands", "pipeline"}
    names = imported_names(path)
    return {name.split(".")[1] for name in names if name.startswith("saecache.")} & {*LAYERS, *above}


@pytest.mark.parametrize("package", LAYERS)
def test_imports_run_downwards(package: str) -> None:
    assert source_files(package)
    for path in source_files(package):
        foreign = imported_packages(path) - LAYERS[package] - {package}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_what_stands_below_them(room: str) -> None:
    assert source_files(room)
    parent, _, name = ".".join(("saecache", *Path(room).parts)).rpartition(".")
    for path in source_files(room):
        beside = {
            found.removeprefix(f"{parent}.").split(".")[0]
            for found in imported_names(path)
            if found.startswith(f"{parent}.")
        }
        foreign = beside - ROOMS[room] - {name}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for types and inside functions count. A package's face stands for the module with the name."""
    files = [path for package in LAYERS for path in source_files(package)]
    modules = {".".join(("saecache", *path.relative_to(ROOT).with_suffix("").parts)): path for path in files}

    def module_of(name: str) -> str | None:
        return name if name in modules else next(iter({name.rpartition(".")[0]} & modules.keys()), None)

    sorter = graphlib.TopologicalSorter(
        {
            module: {found for name in imported_names(path) if (found := module_of(name))} - {module}
            for module, path in modules.items()
            if path.name != "__init__.py"
        }
    )
    assert len(list(sorter.static_order())) > 300


def test_contributing_shows_the_layers() -> None:
    """Its table has one row for each package, and says what that may import."""
    rows = re.findall(
        r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M
    )
    assert {name: set(re.findall(r"`(\w+)/`", allowed)) for name, allowed in rows} == LAYERS


def test_the_import_check_sees_relative_and_absolute_imports(tmp_path: Path) -> None:
    assert imported_packages(ROOT / "pipeline.py") >= {"harvest", "train", "evaluate", "store", "configs"}


@pytest.mark.parametrize("module", ["saecache", "saecache.cli", "saecache.configs", "saecache.common.errors"])
def test_light_modules_do_not_load_heavy_ones(module: str) -> None:
    heavy = ["torch", "transformers", "datasets", "zarr", "numba", "numpy", "scipy", "obstore"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_training_loads_no_language_model_library() -> None:
    code = (
        "import sys, saecache.train.runs.runner, saecache.train.sae, saecache.store.reading.reader;"
        "print([name for name in ('transformers', 'datasets', 'tokenizers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_nothing_stored_is_unpickled_or_evaluated() -> None:
    forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    for package in LAYERS:
        for path in source_files(package):
            tree = ast.parse(path.read_text("utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    assert not forbidden & {a.name.split(".")[0] for a in node.names}, path
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in {"eval", "exec"}, path
                if isinstance(node, ast.Call):
                    assert ast.unparse(node.func) not in {"torch.load", "np.load"}, f"{path} loads pickles"


def test_every_loading_by_transformers_says_whether_it_trusts_code() -> None:
    """Without ``trust_remote_code`` transformers asks on the terminal, where a pipe may answer "yes"."""
    calls = [
        (path, node)
        for package in LAYERS
        for path in source_files(package)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and re.fullmatch(r"Auto\w+\.from_pretrained", ast.unparse(node.func))
    ]
    assert len(calls) >= 5
    for path, call in calls:
        said = any(keyword.arg == "trust_remote_code" for keyword in call.keywords)
        assert said, f"{path}, line {call.lineno} leaves trust_remote_code out"
