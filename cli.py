"""The command line: YAML -> config -> run -> one message. No logic; heavy imports wait inside the commands.

Exit status: 0 done, 1 failed, 2 bad usage or config, 130 interrupted (and saved).
"""

from pathlib import Path
from typing import Annotated

import typer

from .commands import cache, export, sharing  # noqa: F401 - the commands below "saecache cache"
from .commands.border import (
    JsonFlag,
    cache_app,
    cache_facts,
    command,
    describe_cache,
    print_json,
    print_pairs,
    train_command,
)
from .common.errors import SaecacheError

app = typer.Typer(
    name="saecache",
    help="Harvest language-model activations once, then train every sparse autoencoder from the cache.\n\n"
    "Start with 'saecache demo --out demo', or with 'saecache recipes' for the shipped configurations.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cache_app, name="cache")

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.SUB=VALUE", help="Override one setting of CONFIG; may be repeated."),
]


def main() -> None:
    """Console script."""
    app()


@command(app, "harvest")
def harvest(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")],
    set_: SetOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where the cache goes: a folder, or a URL as s3://... Default: caches/<model>-<hash>."
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="With a URL: the folder for rows under way. Default: one of its own below caches/."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Harvest even if the team (SAECACHE_TEAM) has this cache.")
    ] = False,
    extend: Annotated[
        str | None,
        typer.Option(help="A finished cache of fewer tokens of the same text: its rows are copied from it."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a language model over text once and write its activations as a shuffled cache.

    Run the same command again after an interruption: it continues, and the finished cache is the same,
    byte for byte. A finished cache is left as it is, and one that the team has is used where it is.
    """
    from .configs import load_config
    from .harvest import HarvestConfig, run

    settings = load_config(HarvestConfig, config, set_ or [], kinds=("harvest",))
    result = run(settings, out, extend=extend, scratch=scratch, force=force)
    if as_json:
        print_json({"cache": str(result.path), "reused": result.reused, **cache_facts(result.path)})
        return
    if result.reused:
        typer.echo(f"{result.path} holds this cache already; nothing to do.")
    print_pairs(describe_cache(result.path))
    typer.echo(f"\nNext:  {train_command(result.path, result.manifest.hooks)}")


@command(app, "train")
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
        print_json({"run": str(result.run_dir), "saes": saes, "failed": dict(result.failed)})
    else:
        if result.reused:
            typer.echo(f"{result.run_dir} is finished already; nothing to do.")
        for name, path in result.saes.items():
            typer.echo(f"{name:24} {path}")
        typer.echo(f"\nNext:  saecache evaluate {result.run_dir} --cache {cache}")
    if result.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        raise SaecacheError(f"{len(result.failed)} of the variants failed: {reasons}")


@command(app, "synthetic")
def synthetic(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")] = "sampled-sae",
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="Where the cache goes.")] = Path("caches/synthetic"),
    as_json: JsonFlag = False,
) -> None:
    """Write a cache of rows whose features are known, to see which of them an SAE recovers."""
    from .configs import load_config
    from .evaluate.synthetic import SyntheticConfig, write_synthetic

    write_synthetic(load_config(SyntheticConfig, config, set_ or [], kinds=("synthetic",)), out)
    if as_json:
        print_json({"cache": str(out), **cache_facts(out)})
        return
    print_pairs(describe_cache(out))
    typer.echo(f"\nNext:  saecache train papers/sampled-sae-synthetic --cache {out}")


@command(app, "evaluate")
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
        print_json(results.model_dump(mode="json"))
    else:
        from .evaluate import format_table

        typer.echo(format_table(results))


@command(app, "report")
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that 'saecache evaluate' has measured.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML page: Pareto plot, training curves, densities, the top contexts of latents."""
    from .evaluate import write_report

    write_report(runs, out)
    if as_json:
        print_json({"report": str(out)})
    else:
        typer.echo(f"wrote {out}")


export.register(app)


@command(app, "recipes")
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
            print_json({"kind": recipe.kind, "name": recipe.name, "yaml": recipe.text})
        else:
            typer.echo(recipe.text, nl=False)
        return
    found = list_recipes()
    if as_json:
        print_json([{"kind": r.kind, "name": r.name, "summary": r.summary} for r in found])
        return
    width = max((len(r.name) for r in found), default=0)
    for recipe in found:
        typer.echo(f"{recipe.kind:8} {recipe.name:{width}}  {recipe.summary}")
    typer.echo("\nPrint one:  saecache recipes NAME     Start from one:  saecache recipes NAME > my.yaml")


@command(app, "demo")
def demo(
    out: Annotated[Path, typer.Option(help="The folder everything goes to.")] = Path("demo"),
    short: Annotated[bool, typer.Option(help="A tenth of the tokens: under a minute.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """See the whole idea work offline: one harvest of a small model, five SAEs, one report."""
    from . import pipeline

    summary = pipeline.demo(out, short=short)
    if as_json:
        print_json(summary.facts)
    else:
        typer.echo(summary.text)


if __name__ == "__main__":
    main()
