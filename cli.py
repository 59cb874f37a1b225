"""The command line: YAML -> config -> run -> one message. No logic; heavy imports wait inside the commands.

Exit status: 0 done, 1 failed, 2 bad usage or config, 130 interrupted (and saved).
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from .store.errors import SaecacheError

if TYPE_CHECKING:
    from .store.derive import Derived

P = ParamSpec("P")

app = typer.Typer(
    name="saecache",
    help="Harvest language-model activations once, then train every sparse autoencoder from the cache.\n\n"
    "Start with 'saecache demo --out demo', or with 'saecache recipes' for the shipped configurations.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cache_app = typer.Typer(
    help="Look at caches, check them, cut and join them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cache_app, name="cache")

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; everything else goes to stderr.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.SUB=VALUE", help="Override one setting of CONFIG; may be repeated."),
]


def main() -> None:
    """Console script."""
    app()


def _command(group: typer.Typer, name: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
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


@_command(app, "harvest")
def harvest(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")],
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the cache goes. Default: caches/<model>-<hash>.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a language model over text once and write its activations as a shuffled cache.

    Run the same command again after an interruption: it continues, and the finished cache is the same,
    byte for byte. A finished cache is left as it is.
    """
    from .configs import load_config
    from .harvest import HarvestConfig, run

    result = run(load_config(HarvestConfig, config, set_ or [], kinds=("harvest",)), out)
    if as_json:
        _print_json({"cache": str(result.path), "reused": result.reused, **_cache_facts(result.path)})
        return
    if result.reused:
        typer.echo(f"{result.path} holds this cache already; nothing to do.")
    _print_pairs(_describe(result.path))
    hooks = list(result.manifest.hooks)
    choice = f" --set hook={hooks[0]}" if len(hooks) > 1 else ""
    typer.echo(f"\nNext:  saecache train topk --cache {result.path}{choice}")


@_command(app, "train")
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")],
    cache: Annotated[str, typer.Option(help="The cache to train from: a folder, or a URL as s3://...")],
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder. Default: runs/<first variant>-<hash>.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one or many SAEs from a cache in one pass, without the language model.

    Run the same command again after an interruption: it continues from the last checkpoint, bit for bit.
    """
    from .configs import load_config
    from .train import TrainConfig, run

    settings = load_config(TrainConfig, config, set_ or [], kinds=("train", "papers"))
    result = run(settings, cache, out)
    if as_json:
        saes = {name: str(path) for name, path in result.saes.items()}
        _print_json({"run": str(result.run_dir), "saes": saes, "failed": dict(result.failed)})
    else:
        if result.reused:
            typer.echo(f"{result.run_dir} is finished already; nothing to do.")
        for name, path in result.saes.items():
            typer.echo(f"{name:24} {path}")
        typer.echo(f"\nNext:  saecache evaluate {result.run_dir} --cache {cache}")
    if result.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        raise SaecacheError(f"{len(result.failed)} of the variants failed: {reasons}")


@_command(app, "evaluate")
def evaluate(
    targets: Annotated[list[Path], typer.Argument(help="SAE folders, or run folders (every SAE in them).")],
    cache: Annotated[str, typer.Option(help="The cache whose held-out rows are used: a folder or a URL.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the results go. Default: RUN_DIR/results.json.")
    ] = None,
    model: Annotated[
        bool, typer.Option(help="Load the language model for CE loss recovered and KL. --no-model skips it.")
    ] = True,
    ce_tokens: Annotated[int, typer.Option(help="Held-out tokens for CE and KL.")] = 50_000,
    as_json: JsonFlag = False,
) -> None:
    """Measure SAEs on held-out documents: FVU, MSE, L0, dead latents, density, CE loss recovered, KL."""
    from . import pipeline

    results = pipeline.evaluate(targets, cache, out=out, with_model=model, ce_tokens=ce_tokens)
    if as_json:
        _print_json(results.model_dump(mode="json"))
    else:
        from .evaluate import format_table

        typer.echo(format_table(results))


@_command(app, "report")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that 'saecache evaluate' has measured.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML page: Pareto plot, training curves, densities, the top contexts of latents."""
    from .evaluate import write_report

    write_report(runs, out)
    if as_json:
        _print_json({"report": str(out)})
    else:
        typer.echo(f"wrote {out}")


@_command(cache_app, "info")
def cache_info(
    path: Annotated[Path, typer.Argument(help="The cache's folder.")], as_json: JsonFlag = False
) -> None:
    """Say what a cache holds: model, text, hooks, rows, normalization, size, fingerprint."""
    if as_json:
        _print_json(_cache_facts(path))
    else:
        _print_pairs(_describe(path))


@_command(cache_app, "verify")
def cache_verify(
    path: Annotated[Path, typer.Argument(help="The cache's folder.")], as_json: JsonFlag = False
) -> None:
    """Read every byte of a cache and compare it with the manifest; name what is damaged."""
    from tqdm import tqdm

    from .store import read_manifest, verify_cache

    total_bytes = sum(file.size for file in read_manifest(path).files)
    with tqdm(desc="verify", total=total_bytes, unit="B", unit_scale=True) as bar:

        def on_progress(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        result = verify_cache(path, on_progress=on_progress)
    if as_json:
        _print_json({"cache": str(path), "ok": result.ok, "problems": result.problems})
    elif result.ok:
        typer.echo(f"{path}: {result.files} files, {result.bytes:,} bytes, all as written")
    if not result.ok:
        raise SaecacheError(f"{path} is damaged:\n" + "\n".join(f"  - {p}" for p in result.problems))


@_command(cache_app, "slice")
def cache_slice(
    source: Annotated[str, typer.Argument(help="A finished cache.")],
    out: Annotated[Path, typer.Argument(help="The folder of the smaller cache.")],
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
    from .store import open_cache, slice_cache

    chosen = None if hooks is None else [name for listed in hooks for name in listed.split(",") if name]
    with _copying() as bars:
        result = slice_cache(
            open_cache(source), out, hooks=chosen, rows=rows, heldout_rows=heldout_rows, **bars
        )
    _print_derived(result, as_json)


@_command(cache_app, "merge")
def cache_merge(
    paths: Annotated[list[str], typer.Argument(help="Two or more finished caches, then the new folder.")],
    as_json: JsonFlag = False,
) -> None:
    """Join caches that were harvested, alike, from different parts of a dataset into one, shuffled as one.

    Only their text and num_tokens may differ, and no text may be in two of them. Run the same command again
    after an interruption: it continues.
    """
    from .store import merge_caches, open_cache

    *sources, out = paths
    with _copying() as bars:
        result = merge_caches([open_cache(source) for source in sources], Path(out), **bars)
    _print_derived(result, as_json)


@_command(app, "recipes")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's YAML.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the shipped recipes, or print one."""
    from .configs import list_recipes
    from .configs.recipes import find_recipe

    if name is not None:
        recipe = find_recipe(name)
        if as_json:
            _print_json({"kind": recipe.kind, "name": recipe.name, "yaml": recipe.text})
        else:
            typer.echo(recipe.text, nl=False)
        return
    found = list_recipes()
    if as_json:
        _print_json([{"kind": r.kind, "name": r.name, "summary": r.summary} for r in found])
        return
    width = max((len(r.name) for r in found), default=0)
    for recipe in found:
        typer.echo(f"{recipe.kind:8} {recipe.name:{width}}  {recipe.summary}")
    typer.echo("\nPrint one:  saecache recipes NAME     Start from one:  saecache recipes NAME > my.yaml")


@_command(app, "demo")
def demo(
    out: Annotated[Path, typer.Option(help="The folder everything goes to.")] = Path("demo"),
    short: Annotated[bool, typer.Option(help="A tenth of the tokens: under a minute.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """See the whole idea work offline: one harvest of a small model, five SAEs, one report."""
    from . import pipeline

    summary = pipeline.demo(out, short=short)
    if as_json:
        _print_json(summary.facts)
    else:
        typer.echo(summary.text)


@contextmanager
def _copying() -> Iterator[dict[str, Callable[[int, int], None]]]:
    """Progress of a new cache from others, as arguments: rows that are read, then bytes that are written."""
    from tqdm import tqdm

    def following(bar: "tqdm[Any]") -> Callable[[int, int], None]:
        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return on_progress

    with (
        tqdm(desc="read", unit="row", unit_scale=True) as rows,
        tqdm(desc="write", unit="B", unit_scale=True) as written,
    ):
        yield {"on_rows": following(rows), "on_bytes": following(written)}


def _print_derived(result: "Derived", as_json: bool) -> None:
    if as_json:
        _print_json({"cache": str(result.path), "reused": result.reused, **_cache_facts(result.path)})
        return
    if result.reused:
        typer.echo(f"{result.path} holds this cache already; nothing to do.")
    _print_pairs(_describe(result.path))


def _describe(path: Path) -> list[tuple[str, str]]:
    from .store.info import describe, read_manifest, read_provenance

    return describe(read_manifest(path), read_provenance(path))


def _cache_facts(path: Path) -> dict[str, Any]:
    from .store.info import read_manifest

    return read_manifest(path).model_dump(mode="json")


def _print_pairs(pairs: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        typer.echo(f"{label:{width}}  {value}")


def _print_json(document: object) -> None:
    typer.echo(json.dumps(document, indent=2, sort_keys=True))
