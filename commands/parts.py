"""What the commands share: how they fail, how they print, what they say of a cache."""

import json
import os
import sys
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from ..common.errors import SaecacheError

P = ParamSpec("P")

cache_app = typer.Typer(
    help="Look at caches, check them, share them, cut and join them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")
]


def command(group: typer.Typer, name: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command whose known failures end as one message and an exit status."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @wraps(function)
        def told(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except SaecacheError as error:
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(error.exit_status) from None
            except KeyboardInterrupt:
                typer.echo("interrupted; what was done is saved: the same command continues", err=True)
                raise typer.Exit(130) from None
            except BrokenPipeError:  # the reader of our output went away, as in "| head"
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None

        return group.command(name)(told)

    return register


def is_url(place: str | Path) -> bool:
    """Whether a cache is named by a URL."""
    from ..store.remote import is_url

    return is_url(place)


def describe_cache(place: str | Path) -> list[tuple[str, str]]:
    """Label and value of what is known of the cache in a folder or at a URL."""
    from ..store.info import describe, read_manifest, read_provenance

    if is_url(place):
        from ..store.remote.cache_objects import read_root
        from ..store.remote.opening import read_remote_provenance
        from ..store.remote.remote_folder import open_remote_folder

        location = open_remote_folder(str(place))
        return describe(read_root(location).manifest, read_remote_provenance(str(place)))
    return describe(read_manifest(place), read_provenance(place))


def cache_facts(place: str | Path) -> dict[str, Any]:
    """The manifest of the cache in a folder or at a URL, as JSON values."""
    if is_url(place):
        from ..store.remote.cache_objects import read_root
        from ..store.remote.remote_folder import open_remote_folder

        return read_root(open_remote_folder(str(place))).manifest.model_dump(mode="json")
    from ..store.info import read_manifest

    return read_manifest(place).model_dump(mode="json")


def train_command(cache: str | Path, hooks: Collection[str]) -> str:
    """How to train on a cache with these hooks."""
    choice = f" --set hook={min(hooks)}" if len(hooks) > 1 else ""
    return f"saecache train topk --cache {cache}{choice}"


def print_pairs(pairs: list[tuple[str, str]]) -> None:
    """Labels in one column, values in the next."""
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        typer.echo(f"{label:{width}}  {value}")


def print_json(document: object) -> None:
    """The one document of a command's ``--json``."""
    typer.echo(json.dumps(document, indent=2, sort_keys=True))
