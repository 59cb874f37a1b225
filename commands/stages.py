"""The commands of the stages: harvest, synthetic, train, evaluate, report, and the demo of all of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.errors import SaecacheError
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
    from ..train import TrainResult


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
    print_next(train_words(result.path, result.manifest.hooks))


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


def train(
    config: ConfigArgument,
    cache: Annotated[str, typer.Option(help="The cache to train from: a folder, or a URL as s3://...")],
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder. Default: runs/<first variant>-<hash>.")
    ] = None,
    zipf: Annotated[
        str | None,
        typer.Option(
            metavar="RESULTS[:SAE]",
            help="A results file of evaluate: the Zipf law fitted to an SAE's densities replaces alpha and "
            "beta of every zipf in CONFIG.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train one or many SAEs from a cache in one pass, without the language model.

    Run the same command again after an interruption: it continues from the last checkpoint, bit for bit.
    """
    settings = load_settings("train", "TrainConfig", config, set_, "train", "papers")
    from ..train import run

    if zipf is not None:
        from ..evaluate.results import read_fitted_zipf
        from ..train.runs.zipf_values import with_zipf

        law = read_fitted_zipf(zipf)
        settings = with_zipf(settings, law.alpha, law.beta)
    result = run(settings, cache, out)
    if as_json:
        saes = {name: str(path) for name, path in result.saes.items()}
        print_json({"run": str(result.run_dir), "saes": saes, "failed": dict(result.failed)})
    else:
        if result.reused:
            typer.echo(f"{result.run_dir} is finished already; nothing to do.")
        if result.saes:
            typer.echo(_train_table(result))
            if diverged := [name for name, line in result.last_lines.items() if line.get("fvu", 0) > 1]:
                typer.echo(
                    f"warning: FVU of {', '.join(diverged)} is above 1, worse than the mean row: lower the "
                    "learning rate",
                    err=True,
                )
            beside = [f"beside.{name}={place}" for name, place in settings.beside.items()]
            options = [word for setting in beside for word in ("--set", setting)]
            print_next(["saecache", "evaluate", result.run_dir, "--cache", cache, *options])
    if result.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        count = f"{len(result.failed)} of {len(result.failed) + len(result.saes)}"
        raise SaecacheError(f"{count} variants failed: {reasons}")


def _train_table(result: "TrainResult") -> str:
    """One line per SAE: the figures of the last log line of its run, and its folder."""
    from ..common.tables import format_columns

    figures = {"loss": ".4g", "fvu": ".4f", "heldout_fvu": ".4f", "l0": ".1f", "dead": ",d"}
    large = ".4g"  # from 10 on, where a run has diverged
    heads = ["SAE", "folder", "steps", "loss", "FVU", "held-out FVU", "L0", "dead"]
    rows = []
    for name, path in result.saes.items():
        line: dict[str, Any] = result.last_lines.get(name, {})
        values = [
            format(line[key], large if "fvu" in key and line[key] >= 10 else form) if key in line else "-"
            for key, form in figures.items()
        ]
        rows.append([name, str(path), f"{line['step']:,}" if line else "-", *values])
    return format_columns([heads, *rows], num_text=2)


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders (every SAE in them), SAE folders, or SAEs of the Hub: hf://ORG/NAME.",
        ),
    ],
    cache: Annotated[str, typer.Option(help="The cache whose held-out rows are used: a folder or a URL.")],
    config: Annotated[str, typer.Option(help="A YAML file, or the name of a recipe.")] = "evaluate/default",
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="The results file. Default: results.json in the run folder.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="As --set device=...: cpu, cuda, cuda:1, mps or auto.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="threshold|batch",
            help="As --set rule=...: select latents row by row, as at inference, or by the rule of training.",
        ),
    ] = None,
    other_cache: Annotated[
        bool,
        typer.Option(
            "--other-cache", help="Allow a cache of the same model that the SAEs were not trained from."
        ),
    ] = False,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Labelled texts (.jsonl, .csv) for k-sparse probing; may be repeated."
        ),
    ] = None,
    absorption: Annotated[
        bool, typer.Option("--absorption", help="Measure the absorption of first letters.")
    ] = False,
    model: Annotated[
        bool,
        typer.Option(
            help="Load the language model, for CE, KL, logit effects and --probe. --no-model skips it, and "
            "takes only its tokenizer, for the text of contexts."
        ),
    ] = True,
    ce_tokens: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="As --set ce_tokens=...: tokens for CE and KL.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure SAEs on held-out documents: fidelity, sparsity, densities, overlap, CE loss recovered, KL,
    probing; on a synthetic cache also the known features that they recover.
    """
    flags = {
        "device": device,
        "ce_tokens": ce_tokens,
        "rule": rule,
        "other_cache": "true" if other_cache else None,
        "probing.data": json.dumps(probe) if probe else None,
        "absorption": "true" if absorption else None,
    }
    overrides = [*(set_ or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    settings = load_settings("evaluate", "EvaluateConfig", config, overrides, "evaluate")
    from .. import pipeline

    results = pipeline.evaluate(targets, cache, settings, out=out, with_model=model)
    if as_json:
        print_json(results.model_dump(mode="json"))
        return
    from ..evaluate import format_table
    from ..evaluate.known_features import format_recovery
    from ..train.run_files import METRICS_FILE

    typer.echo(format_table(results))
    if known := format_recovery(results):
        typer.echo(f"\n{known}")
    if out is None and Path(targets[0], METRICS_FILE).is_file():
        print_next(["saecache", "report", targets[0]])


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
