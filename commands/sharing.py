"""The commands below "saecache cache" that share caches through object storage: push, pull, ls, rm."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import UsageError
from .printing import JsonFlag, is_url, print_json, print_next, print_pairs, train_words
from .transfer import BandwidthOption, ConcurrencyOption, transfer

if TYPE_CHECKING:
    from ..store.remote.pull import Pull
    from ..store.remote.push import Push
    from ..store.remote.transfer import TransferResult

UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="s3://, gs:// or az://bucket/team/name, hf://datasets/ORG/NAME, or file:///folder/name.",
    ),
]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
VerifyFlag = Annotated[
    bool,
    typer.Option(
        "--verify", help="Read what is already there, instead of trusting sizes and recorded checksums."
    ),
]


def cache_push(
    cache: Annotated[str, typer.Argument(help="The folder of a finished cache.")],
    url: UrlArgument,
    dry_run: DryRunFlag = False,
    verify: VerifyFlag = False,
    concurrency: ConcurrencyOption = None,
    max_bandwidth: BandwidthOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Upload a cache to object storage: what is missing or different moves, the manifest comes last.

    Run the same command again after an interruption: it continues. Credentials, region and endpoint come from
    the standard environment variables and AWS profiles.
    """
    from ..store.remote.push import Push

    if is_url(cache) or not is_url(url):
        folder = "" if is_url(url) else f". A folder has a URL, too: {Path(url).absolute().as_uri()}"
        raise UsageError(
            f"push takes a folder and then a URL: saecache cache push CACHE s3://bucket/team/name{folder}"
        )
    result = _move("push", Push(Path(cache), url, verify=verify), dry_run, concurrency, max_bandwidth)
    _tell(result, as_json, result.url)


def cache_pull(
    url: UrlArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the cache.")],
    dry_run: DryRunFlag = False,
    verify: VerifyFlag = False,
    concurrency: ConcurrencyOption = None,
    max_bandwidth: BandwidthOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Download a cache from object storage, every file checked against the manifest.

    Run the same command again after an interruption: it continues. With --verify it mends a damaged copy.
    """
    from ..store.remote.pull import Pull

    if not is_url(url):
        raise UsageError("pull takes a URL and then a folder: saecache cache pull s3://bucket/team/name DIR")
    result = _move("pull", Pull(url, folder, verify=verify), dry_run, concurrency, max_bandwidth)
    _tell(result, as_json, str(folder))


def cache_ls(
    place: Annotated[str, typer.Argument(metavar="URL", help="A team's prefix, or a folder of caches.")],
    as_json: JsonFlag = False,
) -> None:
    """List the caches below a place: model, hooks, dataset, rows, size, and whether they are complete."""
    from ..store.remote.team import format_listing, list_caches

    if not is_url(place) and not Path(place).is_dir():
        raise UsageError(f"there is no folder {place}: give a folder of caches, or a URL as s3://bucket/team")
    url = place if is_url(place) else Path(place).absolute().as_uri()
    found = list_caches(url)
    if as_json:
        print_json([asdict(listed) | {"modified": str(listed.modified or "")} for listed in found])
    elif found:
        typer.echo(format_listing(found, url))
    else:
        typer.echo(f"no caches at {place}, nor in the folders below it", err=True)


def cache_rm(
    url: UrlArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove a cache from object storage, its manifest first, so that nobody begins to read what is going."""
    from ..store.remote.removal import Removal

    if not is_url(url):
        raise UsageError(f"rm is for caches in object storage; remove the folder {url} with your own tools")
    removal = Removal(url)
    plan = removal.plan()
    if not dry_run:
        if not yes:
            what = f"{plan.state} cache of {plan.objects} objects, {plan.bytes:,} bytes"
            _confirm(f"Remove {plan.url} ({what})?")
        removal.run()
    if as_json:
        print_json(asdict(plan) | {"dry_run": dry_run})
        return
    done = "would remove" if dry_run else "removed"
    typer.echo(f"{done} {plan.objects} objects, {plan.bytes:,} bytes at {plan.url}")
    if plan.foreign:
        typer.echo(f"{plan.foreign} objects there are no part of the cache and stay", err=True)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("rm asks before it removes, and there is nobody to ask here: pass --yes")
    if not typer.confirm(question):
        raise UsageError("nothing was removed")


def _move(
    what: str,
    mover: "Push | Pull",
    dry_run: bool,
    concurrency: int | None,
    max_bandwidth: float | None,
) -> "TransferResult":
    planned = mover.plan()
    if dry_run:
        return planned
    with transfer(what, planned.moved_bytes, concurrency, max_bandwidth) as traffic:
        mover.traffic = traffic
        return mover.run()


def _tell(result: "TransferResult", as_json: bool, target: str) -> None:
    """Where the result is, and what to run next with the cache at ``target``."""
    if as_json:
        print_json(asdict(result))
        return
    moved = f"{result.moved_objects:,} of {result.objects:,} objects, {result.moved_bytes:,} bytes"
    stayed = f"{result.bytes - result.moved_bytes:,} bytes were there already"
    if not result.moved_objects:
        typer.echo("Everything is there already; nothing to do.")
    print_pairs(
        [
            ("would move" if result.dry_run else "moved", f"{moved}; {stayed}"),
            ("fingerprint", result.fingerprint),
            ("cache", result.cache),
            ("url", result.url),
        ]
    )
    if not result.dry_run:
        from ..store.manifest_file import load_manifest

        manifest = load_manifest(Path(result.cache))
        train = train_words(target, manifest.hooks, manifest.train_rows)
        print_next(["saecache", "cache", "info", target], train)
