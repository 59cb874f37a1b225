"""The commands "saecache harvest", "synthetic", "report" and "demo"."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .printing import (
    JsonFlag,
    cache_facts,
    describe_cache,
    print_json,
    print_next,
    print_pairs,
    train_words,
)
from .settings import ConfigArgument, SetOption, load_settings

if TYPE_CHECKING:
    pass


def harvest(
    config: ConfigArgument,
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
            help="With a URL: the folder for rows that are not uploaded yet. Default: a folder below caches/."
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
    byte for byte. A finished cache is left as it is. If the team has the cache, that one is used.
    """
    settings = load_settings("harvest", "HarvestConfig", config, set_, "harvest")
    from ..harvest import run

    result = run(settings, out, extend=extend, scratch=scratch, force=force)
    if as_json:
        print_json({"cache": str(result.path), "reused": result.reused, **cache_facts(result.path)})
        return
    if result.reused:
        typer.echo(f"{result.path} holds this cache already; nothing to do.")
    print_pairs(describe_cache(result.path))
    manifest = result.manifest
    print_next(train_words(result.path, manifest.hooks, manifest.train_rows))


def synthetic(
    config: ConfigArgument = "sampled-sae",
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="The folder of the cache.")] = Path("caches/synthetic"),
    as_json: JsonFlag = False,
) -> None:
    """Write a cache of rows whose features are known, to see which of them an SAE recovers."""
    settings = load_settings("evaluate.synthetic", "SyntheticConfig", config, set_, "synthetic")
    from ..evaluate.synthetic import write_synthetic

    write_synthetic(settings, out)
    if as_json:
        print_json({"cache": str(out), **cache_facts(out)})
        return
    print_pairs(describe_cache(out))
    print_next(["saecache", "train", "papers/sampled-sae-synthetic", "--cache", out])


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders that 'saecache evaluate' has measured, or results files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Also write every figure as SVG, PNG and CSV into this folder.")
    ] = None,
    latents: Annotated[
        int, typer.Option(min=0, help="Of an SAE with more latents so many are in the page.")
    ] = 16_384,
    as_json: JsonFlag = False,
) -> None:
    """Write one HTML page: comparison, Pareto fronts, training curves, densities, and every latent."""
    from ..evaluate.report import write_figures, write_report

    written = [] if figures is None else write_figures(runs, figures)
    write_report(runs, out, most_latents=latents)
    if as_json:
        print_json({"report": str(out), "figures": [str(path) for path in written]})
        return
    typer.echo(f"wrote {out}")
    if figures is not None:
        typer.echo(f"wrote {len(written)} files of figures to {figures}")


def demo(
    out: Annotated[Path, typer.Option(help="The folder everything goes to.")] = Path("demo"),
    short: Annotated[bool, typer.Option(help="A tenth of the tokens: under a minute.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """See the whole idea work offline: one harvest of a small model, five SAEs, one report."""
    from .. import pipeline

    summary = pipeline.run_demo(out, short=short)
    if as_json:
        print_json(summary.facts)
    else:
        typer.echo(summary.text)
