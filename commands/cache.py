"""The commands below "saecache cache" that look at caches, check, cut and join them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..common.errors import SaecacheError, UsageError
from ..common.progress import progress_bar
from .printing import (
    JsonFlag,
    cache_facts,
    describe_cache,
    is_url,
    print_json,
    print_next,
    print_pairs,
    train_words,
)
from .transfer import BandwidthOption, ConcurrencyOption, bytes_bar, manifest_bytes, transfer

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..store.derived.derive import Derived


def cache_info(
    place: Annotated[str, typer.Argument(metavar="CACHE", help="The cache: a folder or a URL.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what a cache holds: model, text, hooks, rows, norms, normalization, size, fingerprint.

    How much of E|x|^2 lies in a few rows (attention sinks) is computed from the norms of the rows. Of a large
    cache in object storage only the manifest is read, and this is left out.
    """
    if as_json:
        print_json(cache_facts(place) | _largest_rows(place))
    else:
        print_pairs(describe_cache(place))


def _largest_rows(place: str) -> dict[str, Any]:
    from ..store.info import LargestRows, largest_rows
    from ..store.remote.opening import read_manifest_at

    found = largest_rows(place, read_manifest_at(place))
    return {"largest_rows": {h: asdict(r) if isinstance(r, LargestRows) else r for h, r in found.items()}}


def cache_verify(
    place: Annotated[str, typer.Argument(metavar="CACHE", help="The cache: a folder or a URL.")],
    quick: Annotated[
        bool, typer.Option(help="For a URL: compare sizes and recorded checksums, read no data.")
    ] = False,
    concurrency: ConcurrencyOption = None,
    max_bandwidth: BandwidthOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Read every byte of a cache and compare it with the manifest; name what is damaged."""
    from ..store import verify_cache

    if is_url(place):
        from ..store.remote.verify import verify_remote

        moving = 0 if quick else manifest_bytes(place)
        with transfer("verify", moving, concurrency, max_bandwidth) as traffic:
            result = verify_remote(place, traffic, quick=quick)
    elif quick or concurrency or max_bandwidth:
        raise UsageError("--quick, --concurrency and --max-bandwidth are for caches in object storage")
    else:
        with bytes_bar("verify", manifest_bytes(place)) as bar:
            result = verify_cache(place, on_progress=lambda done, _total: _advance(bar, done))
    if as_json:
        print_json({"cache": place, "ok": result.ok, "problems": result.problems})
    elif result.ok:
        files = "1 file" if result.files == 1 else f"{result.files} files"
        typer.echo(f"{place}: {files}, {result.bytes:,} bytes, all as written")
    if not result.ok:
        raise SaecacheError(f"{place} is damaged:\n" + "\n".join(f"  - {p}" for p in result.problems))


def cache_slice(
    source: Annotated[str, typer.Argument(help="A finished cache.")],
    out: Annotated[str, typer.Argument(help="The folder of the smaller cache.")],
    hooks: Annotated[
        list[str] | None, typer.Option(help="Hooks to keep, separated by commas. Default: all.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Keep the first training rows, a uniform sample. Default: all.")
    ] = None,
    heldout_rows: Annotated[
        int | None, typer.Option(help="Keep the first held-out rows. Default: all.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy some hooks, or the first rows, of a cache to a smaller one.

    Run the same command again after an interruption: it continues.
    """
    from ..store import open_cache, slice_cache

    chosen = None if hooks is None else [name for listed in hooks for name in listed.split(",") if name]
    with _copying() as bars:
        result = slice_cache(
            open_cache(source),
            out,
            hooks=chosen,
            rows=rows,
            heldout_rows=heldout_rows,
            on_rows=bars.rows,
            on_bytes=bars.written,
        )
    _print_derived(result, as_json)


def cache_merge(
    paths: Annotated[list[str], typer.Argument(help="Two or more finished caches, then the new folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Join caches of different parts of a dataset, harvested with the same settings, and shuffle them.

    Only their text and num_tokens may differ, and no text may be in two of them. Run the same command again
    after an interruption: it continues.
    """
    from ..store import merge_caches, open_cache

    *sources, out = paths
    with _copying() as bars:
        opened = [open_cache(source) for source in sources]
        result = merge_caches(opened, out, on_rows=bars.rows, on_bytes=bars.written)
    _print_derived(result, as_json)


def cache_convert(
    source: Annotated[str, typer.Argument(help="A finished cache.")],
    out: Annotated[str, typer.Argument(help="The folder of the new cache.")],
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16, int8 or float32. Default: that of the source.")
    ] = None,
    codec: Annotated[str, typer.Option(help="Compression: zstd, blosc, none, or keep as it is.")] = "keep",
    level: Annotated[
        int | None, typer.Option(help="Level of the compression; a higher one gives smaller files.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy a cache to one whose rows are stored in another number type or compression.

    Run the same command again after an interruption: it continues.
    """
    from ..store import convert_cache, open_cache
    from ..store.derived.converting import parse_codec, parse_dtype

    chosen = parse_codec(codec, level)
    wanted = None if dtype is None else parse_dtype(dtype)
    with _copying() as bars:
        result = convert_cache(
            open_cache(source), out, dtype=wanted, codec=chosen, on_rows=bars.rows, on_bytes=bars.written
        )
    _print_derived(result, as_json)


class _Bars(NamedTuple):
    """Progress of a new cache from others: rows that are read, then bytes that are written."""

    rows: Callable[[int, int], None]
    written: Callable[[int, int], None]


@contextmanager
def _copying() -> Iterator[_Bars]:
    def following(bar: "tqdm[Any]") -> Callable[[int, int], None]:
        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return on_progress

    with (
        progress_bar("read", "row", delay=0.5) as rows,
        progress_bar("write", "B", delay=0.5) as written,
    ):
        yield _Bars(following(rows), following(written))


def _print_derived(result: "Derived", as_json: bool) -> None:
    if as_json:
        print_json({"cache": str(result.path), "reused": result.reused, **cache_facts(result.path)})
        return
    if result.reused:
        typer.echo(f"{result.path} holds this cache already; nothing to do.")
    print_pairs([("cache", str(result.path)), *describe_cache(result.path)])
    manifest = result.manifest
    print_next(train_words(result.path, manifest.hooks, manifest.train_rows))


def _advance(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)
