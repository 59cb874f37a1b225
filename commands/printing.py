"""What commands print: JSON, or lines for people; a cache's facts; the next command to run."""

import json
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.hook_names import NAMED_HOOKS, parse_hook

RECIPE_BATCH_ROWS = 4096  # of the recipe that train_words names

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")
]


def print_json(document: object) -> None:
    """Print the one document of a command's ``--json``."""
    typer.echo(json.dumps(document, indent=2, sort_keys=True))


def print_pairs(pairs: list[tuple[str, str]]) -> None:
    """Print labels in one column and values in the next."""
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        typer.echo(f"{label:{width}}  {value}")


def print_next(*commands: Sequence[str | Path]) -> None:
    """Print the commands to run next, each a list of words, quoted for a shell."""
    for number, words in enumerate(commands):
        typer.echo(("       " if number else "\nNext:  ") + shell_line(words))


def shell_line(words: Sequence[str | Path]) -> str:
    """The words of a command as one line that a shell splits into the same words."""
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    """``word`` for a shell: in double quotes if it has single ones and nothing that a shell expands."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def train_words(cache: str | Path, hooks: Collection[str], train_rows: int) -> list[str]:
    """The words of a command that trains on a cache with these hooks and so many training rows."""
    choice = ["--set", f"hook={suggest_hook(hooks)}"] if len(hooks) > 1 else []
    if 0 < train_rows < RECIPE_BATCH_ROWS:  # a dozen steps or so, to try it
        choice += ["--set", f"batch_rows={max(1, train_rows // 16)}"]
    return ["saecache", "train", "topk", "--cache", str(cache), *choice]


def suggest_hook(hooks: Collection[str]) -> str:
    """The hook to begin with: of the residual stream where there is one, from the layer in the middle."""
    named = [found for hook in hooks if (found := parse_hook(hook))]
    for kind in NAMED_HOOKS:
        if layers := sorted(layer for of, layer in named if of == kind):
            return f"{kind}.{layers[len(layers) // 2]}"
    return next(iter(hooks))


def is_url(place: str | Path) -> bool:
    """Whether a cache is named by a URL."""
    from ..store.remote import is_url

    return is_url(place)


def describe_cache(place: str | Path) -> list[tuple[str, str]]:
    """Label and value of what is known of the cache in a folder or at a URL."""
    from ..store.info import describe, largest_rows, read_provenance
    from ..store.remote.opening import read_manifest_at, read_remote_provenance

    manifest = read_manifest_at(place)
    provenance = read_remote_provenance(str(place)) if is_url(place) else read_provenance(place)
    return describe(manifest, provenance, largest_rows(place, manifest))


def cache_facts(place: str | Path) -> dict[str, Any]:
    """The manifest of the cache in a folder or at a URL, as JSON values."""
    from ..store.remote.opening import read_manifest_at

    return read_manifest_at(place).model_dump(mode="json")
