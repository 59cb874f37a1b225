"""The command "saecache export"."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.errors import UsageError
from ..evaluate.export.formats import format_names
from .printing import JsonFlag, print_json, print_next, print_pairs

if TYPE_CHECKING:
    from ..evaluate.export import Export, LatentExport
    from ..evaluate.export.comparison import Comparison


def export(
    sae_dir: Annotated[
        str,
        typer.Argument(
            metavar="SAE_DIR", help="The SAE: RUN_DIR/<variant>/sae, another library's, or hf://ORG/NAME."
        ),
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"{', '.join(format_names())}: the SAE; delphi, neuronpedia: its latents.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option(help="A new folder.", show_default=False)],
    cache: Annotated[
        str | None,
        typer.Option(
            help="The cache it was trained from: compares on held-out rows, names the text. delphi needs it."
        ),
    ] = None,
    normalized_input: Annotated[
        bool,
        typer.Option(
            "--normalized-input",
            help="Rows that are handed in will be normalized as the cache does it. Default: raw activations.",
        ),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            help="delphi: tokens of a window of text, a divisor of the cache's context. Default: 32."
        ),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="delphi: at most so many held-out rows. Default: 500,000.")
    ] = None,
    other_cache: Annotated[
        bool, typer.Option("--other-cache", help="delphi: allow another cache of the same model.")
    ] = False,
    latents: Annotated[
        Path | None,
        typer.Option(help="neuronpedia: the folder of latents of saecache evaluate, results.latents/NAME."),
    ] = None,
    model_id: Annotated[
        str | None, typer.Option(help="neuronpedia: its name of the model, as gpt2-small.")
    ] = None,
    source_set: Annotated[
        str | None, typer.Option(help="neuronpedia: the name of the set of SAEs. Default: the SAE's.")
    ] = None,
    creator: Annotated[str | None, typer.Option(help="neuronpedia: who made the SAE.")] = None,
    creator_id: Annotated[
        str | None, typer.Option(help="neuronpedia: your account's identifier there.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="neuronpedia: results with explanations of saecache interpret. Default: those of --latents."
        ),
    ] = None,
    explanation_type: Annotated[
        str | None, typer.Option(help="neuronpedia: its name of the way of explaining, as np_max-act.")
    ] = None,
    explanation_model: Annotated[
        str | None, typer.Option(help="neuronpedia: its name of the judge, as gpt-4o-mini.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write an SAE in the format of another library, or its latents for a tool that explains or shows them.

    The folder appears only if what was written is right: a plain version of the library's forward pass has
    the same active latents, features and reconstructions; latents are read back and compared.
    """
    options: dict[str, dict[str, Any]] = {
        "delphi": {"window": window, "max_rows": max_rows, "other_cache": other_cache},
        "neuronpedia": {
            "latents": latents,
            "model_id": model_id,
            "source_set": source_set,
            "creator": creator,
            "creator_id": creator_id,
            "results": results,
            "explanation_type": explanation_type,
            "explanation_model": explanation_model,
        },
    }
    for name, values in options.items():
        for key, value in values.items():
            if value and format_ != name:
                raise UsageError(
                    f"--{key.replace('_', '-')} has no effect with --format {format_}: leave it out"
                )
    if normalized_input and format_ in options:
        raise UsageError(f"--normalized-input has no effect with --format {format_}: leave it out")
    if format_ == "delphi":
        if cache is None:
            raise UsageError("--format delphi shows latents on text: give --cache")
        given = {key: value for key, value in options["delphi"].items() if value}
        _print_latents(_export_delphi(sae_dir, out, cache, given), as_json)
        return
    if format_ == "neuronpedia":
        _print_latents(_export_neuronpedia(sae_dir, out, cache, options["neuronpedia"]), as_json)
        return
    from ..evaluate.export import export_sae

    result = export_sae(sae_dir, format_, out, cache=cache, normalized_input=normalized_input)
    if as_json:
        print_json(result.to_json())
    else:
        print_pairs(_described(result, cache))
        print_next(["python", "-c", result.loading])


def _export_delphi(sae_dir: str, out: str, cache: str, options: dict[str, Any]) -> "LatentExport":
    from ..evaluate.export import export_delphi

    return export_delphi(sae_dir, out, cache=cache, **options)


def _export_neuronpedia(sae_dir: str, out: str, cache: str | None, options: dict[str, Any]) -> "LatentExport":
    lacking = [key for key in ("latents", "model_id", "creator", "creator_id") if not options[key]]
    if lacking:
        listed = ", ".join(f"--{key.replace('_', '-')}" for key in lacking)
        raise UsageError(f"--format neuronpedia needs {listed}")
    from ..evaluate.export import export_neuronpedia
    from ..evaluate.export.neuronpedia import NeuronpediaNames
    from ..train import load_sae

    name = options["source_set"] or load_sae(sae_dir).cfg.name
    names = NeuronpediaNames(
        model_id=options["model_id"],
        source_set=name,
        creator=options["creator"],
        creator_id=options["creator_id"],
        release=name,
        description=f"{name}, trained with saecache",
        explanation_type=options["explanation_type"],
        explanation_model=options["explanation_model"],
    )
    given = {key: options[key] for key in ("latents", "results")}
    return export_neuronpedia(sae_dir, out, names=names, cache=cache, **given)


def _print_latents(result: "LatentExport", as_json: bool) -> None:
    if as_json:
        print_json({"path": str(result.path), "format": result.format, **result.facts})
        return
    facts = [(key.replace("_", " "), _shown(value)) for key, value in result.facts.items()]
    print_pairs([("export", str(result.path)), ("format", result.format), *facts])
    if result.loading:
        print_next(["python", "-c", result.loading])


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _described(result: "Export", cache: str | None) -> list[tuple[str, str]]:
    times = " and the norm of the decoder row" if result.features_times_decoder_norm else ""
    pairs = [
        ("export", str(result.path)),
        ("format", f"{result.format}, {result.architecture}"),
        ("input", f"{result.rows} rows"),
        ("features", f"ours times {result.feature_factor:.6g}{times}"),
    ]
    for comparison in result.comparisons:
        values = asdict(comparison)
        pairs += [
            (
                f"on {comparison.num_rows:,} {comparison.rows} rows",
                f"active latents differ in {values['mask_difference']:.2e} of the pairs, features by "
                f"{values['feature']:.1e}, reconstructions by {values['reconstruction']:.1e}",
            ),
            (
                "",
                f"L0 {comparison.l0:.2f} here, {comparison.l0_exported:.2f} there{_fvu_of(comparison)}",
            ),
        ]
    if result.unknown:
        where = "neither the SAE nor the cache says it" if cache else "the cache may say it: give --cache"
        pairs.append(("not known", f"{', '.join(result.unknown)} ({where})"))
    return pairs


def _fvu_of(comparison: "Comparison") -> str:
    if comparison.fvu is None or comparison.fvu_exported is None:
        return ""
    return f"; FVU {comparison.fvu:.4f} here, {comparison.fvu_exported:.4f} there"
