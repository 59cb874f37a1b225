"""The command "saecache interpret": a judge explains latents and scores its explanations."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .printing import JsonFlag, print_json
from .settings import SetOption, load_settings

if TYPE_CHECKING:
    from ..evaluate.results import Interpretation, MeanScore, Results


def interpret(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders (every SAE in them), SAE folders, or SAEs of the Hub: hf://ORG/NAME.",
        ),
    ],
    cache: Annotated[str, typer.Option(help="The cache whose held-out text is shown: a folder or a URL.")],
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="As --set endpoint.url=...: an OpenAI-compatible server, as http://127.0.0.1:8000/v1.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="As --set endpoint.model=...: the judge's name there.")
    ] = None,
    config: Annotated[str, typer.Option(help="A YAML file, or the name of a recipe.")] = "interpret/default",
    set_: SetOption = None,
    results: Annotated[
        Path | None,
        typer.Option(help="What 'saecache evaluate' wrote. Default: results.json in the run folder."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="The folder of stored answers. Default: judge_answers beside the results."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="As --set prompts=...: prompts of your own.")
    ] = None,
    other_cache: Annotated[
        bool,
        typer.Option(
            "--other-cache", help="Allow a cache of the same model that the SAEs were not trained from."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will cost, show prompts, and ask nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Have a language model explain latents, and score how far its explanations hold on other text.

    Adds explanations, detection and fuzzing scores, and the calibration to the results of 'saecache
    evaluate'. An API key is read from the environment variable SAECACHE_JUDGE_KEY. Every answer is stored:
    run the same command again after an interruption, and only the missing calls are made.
    """
    flags = {"endpoint.url": endpoint, "endpoint.model": model, "prompts": prompts}
    overrides = [
        *(set_ or []),
        *(f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None),
    ]
    settings = load_settings("evaluate.judge", "InterpretConfig", config, overrides, "interpret")
    from .. import pipeline

    done = pipeline.interpret(
        targets,
        cache,
        settings,
        results=results,
        answers=answers,
        other_cache=other_cache,
        dry_run=dry_run,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        estimate = done.estimate
        facts = {
            "explanations": estimate.explanations,
            "scores": estimate.scores,
            "answered": estimate.answered,
            "prompt_tokens": estimate.prompt_tokens,
            "completion_tokens": estimate.completion_tokens,
            "cost": None if settings.price is None else estimate.cost(settings.price),
        }
        found = (
            {}
            if done.results is None
            else {
                sae.name: sae.interpretation.model_dump(mode="json")
                for sae in done.results.saes
                if sae.interpretation is not None
            }
        )
        unique = (
            [] if done.results is None else [one.model_dump(mode="json") for one in done.results.uniqueness]
        )
        document = {"estimate": facts, "calls_made": done.made, "sample": done.sample or None}
        print_json(document | {"interpretations": found, "uniqueness": unique})
    elif done.results is None:
        typer.echo(done.sample)
    else:
        typer.echo(_table(done.results))


def _table(results: "Results") -> str:
    """One line per SAE: how many latents were judged, and the mean scores; then what is missing."""
    from ..common.tables import format_columns

    rows = [["SAE", "judged", "skipped", "rare", "detection", "fuzzing", "calibration r", "unanswered"]]
    lines = []
    for sae in results.saes:
        found = sae.interpretation
        if found is None:
            continue
        calibration = found.calibration
        rows.append(
            [
                sae.name,
                f"{len(found.latents):,}",
                f"{len(found.skipped):,}",
                f"{found.too_few_windows:,}",
                _score(found.detection),
                _score(found.fuzzing),
                "-" if calibration is None else _figure(calibration.correlation, calibration.interval),
                f"{sum(found.unanswered.values()):,}",
            ]
        )
        lines += _missing(sae.name, found)
    for pair in results.uniqueness:
        mean = _figure(pair.mean_similarity, pair.interval)
        lines.append(f"{pair.a} in {pair.b}: best matches have a similarity of {mean}")
    return "\n".join([format_columns(rows, num_text=1), *lines])


def _score(score: "MeanScore | None") -> str:
    return "-" if score is None else _figure(score.mean, score.interval)


def _figure(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")


def _missing(name: str, found: "Interpretation") -> list[str]:
    """What was skipped and what was not answered, in words."""
    lines = [f"{name}: latent {one.index} was skipped: {one.reason}" for one in found.skipped[:5]]
    if len(found.skipped) > 5:
        lines.append(f"{name}: {len(found.skipped) - 5} more were skipped; the results name them")
    asked = [f"{count:,} {purpose} calls" for purpose, count in found.unanswered.items() if count]
    if asked:
        lines.append(f"{name}: no usable answer to {' and '.join(asked)}; their windows count in no score")
    return lines
