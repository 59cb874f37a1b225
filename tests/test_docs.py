"""What the pages in docs/ and the README tell to type exists; their numbers are those of the scripts."""

import json
import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import saecache
from saecache.cli import app
from saecache.store.remote.failures import AccessError

ROOT = Path(saecache.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every ``saecache ...`` in the shell blocks of a page, as the shell would split it."""
    found = []
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "saecache" in words and not line.startswith(("export", "pip")):
            found.append(words[words.index("saecache") + 1 :])
    return found


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{p.name} {' '.join(w[:3])}" for p, w in ALL])
def test_commands_of_the_pages_parse(page: Path, words: list[str]) -> None:
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"{page.name}: there is no command {name}"
        command = found
    command.make_context("saecache", list(words))


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{p.name} {' '.join(w[:3])}" for p, w in ALL])
def test_recipes_and_settings_of_the_pages_exist(page: Path, words: list[str]) -> None:
    from saecache.configs import load_config
    from saecache.harvest import HarvestConfig
    from saecache.train import TrainConfig

    settings = [value for option, value in pairwise(words) if option == "--set"]
    settings = [re.sub(r"=\.\.\.$", "=1", re.sub(r"\$\w+", "1", setting)) for setting in settings]
    if words[0] == "harvest":
        load_config(HarvestConfig, words[1], settings, kinds=("harvest",))
    elif words[0] == "train":
        load_config(TrainConfig, words[1], settings, kinds=("train", "papers"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_that_are_linked_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_costs_are_those_of_the_script() -> None:
    table = runpy.run_path(str(ROOT / "docs" / "costs.py"))["table"]()
    assert f"<!-- costs -->\n{table}\n<!-- end of costs -->" in (ROOT / "docs" / "sharing.md").read_text(
        "utf-8"
    )


def test_sizes_of_the_costs_by_hand() -> None:
    module: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "costs.py"))
    for tokens in module["TOKENS"]:
        for width in module["WIDTHS"]:
            cost = module["costs"](tokens, width)
            assert cost.gigabytes == pytest.approx(tokens * (2 * width + 24) / 1e9, rel=1e-3)
            assert cost.month == pytest.approx(cost.gigabytes * 0.023)
            assert cost.reads == pytest.approx(tokens * 2 * width / 2**28, rel=0.02, abs=1)


def test_policies_are_valid_json_with_the_rights_that_are_used() -> None:
    readers, writers = (json.loads(block) for block in blocks(ROOT / "docs" / "sharing.md", "json"))

    def actions(policy: dict[str, Any]) -> set[str]:
        return {action for statement in policy["Statement"] for action in statement["Action"]}

    assert actions(readers) == {"s3:ListBucket", "s3:GetBucketLocation", "s3:GetObject"}
    assert actions(writers) > actions(readers) | {
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }


def test_exit_statuses_of_the_cluster_page() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "cluster.md").read_text("utf-8"), re.MULTILINE)
    assert list(map(int, rows)) == [0, 1, 2, 130]
    assert AccessError.exit_status == 2
