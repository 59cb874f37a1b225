"""What commands print: JSON, or lines for people; a cache's facts; the next command to run."""

import json
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")
]
_HOOK_KINDS = (
    "resid_post",
    "resid_mid",
    "resid_pre",
    "mlp_out",
    "mlp_in",
    "attn_out",
)  # in the order in which they are suggested


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


def train_words(cache: str | Path, hooks: Collection[str]) -> list[str]:
    """The words of a command that trains on a cache with these hooks."""
    choice = ["--set", f"hook={suggest_hook(hooks)}"] if len(hooks) > 1 else []
    return ["saecache", "train", "topk", "--cache", str(cache), *choice]


def suggest_hook(hooks: Collection[str]) -> str:
    """The hook to begin with: of the residual stream where there is one, from the layer in the middle."""
    for kind in _HOOK_KINDS:
        layers = sorted(int(found[1]) for hook in hooks if (found := re.fullmatch(rf"{kind}\.(\d+)", hook)))
        if layers:
            return f"{kind}.{layers[len(layers) // 2]}"
    return next(iter(hooks))


def is_url(place: str | Path) -> bool:
    """Whether a cache is named by a URL."""
    from ..store.remote import is_url

    return is_url(place)


def describe_cache(place: str | Path) -> list[tuple[str, str]]:
    """Label and value of what is known of the cache in a folder or at a URL."""
    from ..store.info import describe, largest_rows, read_manifest, read_provenance

    if is_url(place):
        from ..store.remote.cache_objects import read_root
        from ..store.remote.opening import read_remote_provenance
        from ..store.remote.places import open_remote_folder

        manifest = read_root(open_remote_folder(str(place))).manifest
        return describe(manifest, read_remote_provenance(str(place)), largest_rows(place, manifest))
    manifest = read_manifest(place)
    return describe(manifest, read_provenance(place), largest_rows(place, manifest))


def cache_facts(place: str | Path) -> dict[str, Any]:
    """The manifest of the cache in a folder or at a URL, as JSON values."""
    if is_url(place):
        from ..store.remote.cache_objects import read_root
        from ..store.remote.places import open_remote_folder

        return read_root(open_remote_folder(str(place))).manifest.model_dump(mode="json")
    from ..store.info import read_manifest

    return read_manifest(place).model_dump(mode="json")
