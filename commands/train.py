"""The command "saecache train": SAEs from a cache, and the table of their last figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.errors import SaecacheError
from .printing import JsonFlag, print_json, print_next
from .settings import ConfigArgument, SetOption, load_settings

if TYPE_CHECKING:
    from ..train import TrainResult


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
            if worse := [name for name, line in result.last_lines.items() if _last_fvu(line) > 1]:
                typer.echo(
                    f"warning: FVU of {', '.join(worse)} is above 1, worse than the mean row: train "
                    "longer, or lower the learning rate if the loss has risen",
                    err=True,
                )
            beside = [f"beside.{name}={place}" for name, place in settings.beside.items()]
            options = [word for setting in beside for word in ("--set", setting)]
            print_next(["saecache", "evaluate", result.run_dir, "--cache", cache, *options])
    if result.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        count = f"{len(result.failed)} of {len(result.failed) + len(result.saes)}"
        raise SaecacheError(f"{count} variants failed: {reasons}")


def _last_fvu(line: dict[str, Any]) -> float:
    """The FVU on held-out rows at the end, where it was measured; else the mean over the last interval."""
    found = line.get("heldout_fvu", line.get("fvu"))
    return found if isinstance(found, int | float) else 0.0


def _train_table(result: "TrainResult") -> str:
    """One line per SAE: the figures of the last log line of its run, and its folder."""
    from ..common.tables import format_columns

    figures = {"loss": ".4g", "fvu": ".4f", "heldout_fvu": ".4f", "l0": ".1f", "dead": ",.0f"}
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
