"""What the wheel must carry: every package of the tree, and every data file that the code opens."""

import tomllib
from pathlib import Path

import saecache

ROOT = Path(saecache.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_SHIPPED = {"tests", "benchmarks", "build", "dist"}


def shipped_packages() -> set[str]:
    found = set()
    for marker in ROOT.rglob("__init__.py"):
        parts = marker.parent.relative_to(ROOT).parts
        if parts and (parts[0] in NOT_SHIPPED or parts[0].startswith(".")):
            continue
        found.add(".".join(("saecache", *parts)))
    return found


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == shipped_packages()


def test_every_data_file_is_in_the_wheel() -> None:
    covered = set()
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            covered |= set(folder.glob(pattern))
    for folder, pattern in (
        ("configs", "*/*.yaml"),
        ("evaluate/report/templates", "*"),
        ("evaluate/judge/templates", "*"),
        ("harvest/builtin/demo", "*"),
        (".", "py.typed"),
    ):
        files = {path for path in (ROOT / folder).glob(pattern) if path.is_file()}
        assert files, f"{folder} holds nothing"
        assert files <= covered, f"not in package-data: {sorted(files - covered)}"


def test_the_pinned_torch_and_version_agree() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text("utf-8").split()
    assert PROJECT["project"]["version"] == saecache.__version__


def test_the_oldest_versions_are_those_that_are_tested() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text("utf-8").splitlines()
    tested = {line.replace("==", ">=") for line in lines if not line.startswith("#")}
    assert tested == set(PROJECT["project"]["dependencies"])
