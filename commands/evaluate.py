"""The command "saecache evaluate": SAEs on held-out rows, and the table of their figures."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .printing import JsonFlag, print_json, print_next
from .settings import SetOption, load_settings


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
