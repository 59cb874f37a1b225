"""The command "saecache export"."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.errors import UsageError
from .printing import JsonFlag, print_json, print_next, print_pairs

if TYPE_CHECKING:
    from ..evaluate.export import Export, LatentExport


def export(
    sae_dir: Annotated[
        Path, typer.Argument(metavar="SAE_DIR", help="The SAE: RUN_DIR/<variant>/sae, or another library's.")
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="saelens, dictionary_learning or sparsify for the SAE; delphi for its latents on a cache.",
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
        bool,
        typer.Option("--other-cache", help="delphi: allow another cache of the same model."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write an SAE in the format of another library, or its latents for a tool that explains them.

    The folder appears only if what was written is right: a plain version of the library's forward pass has
    the same active latents, features and reconstructions; latents are read back and compared.
    """
    from ..evaluate.export.latent_formats import LATENT_FORMATS

    of_latents: dict[str, Any] = {"--window": window, "--max-rows": max_rows, "--other-cache": other_cache}
    if format_ in LATENT_FORMATS:
        if cache is None:
            raise UsageError(f"--format {format_} shows latents on text: give --cache")
        if normalized_input:
            raise UsageError(f"--normalized-input has no effect with --format {format_}: leave it out")
        _export_latents(sae_dir, out, cache, of_latents, as_json)
        return
    if given := [option for option, value in of_latents.items() if value]:
        raise UsageError(f"{given[0]} has no effect with --format {format_}: leave it out")
    from ..evaluate.export import export_sae

    result = export_sae(sae_dir, format_, out, cache=cache, normalized_input=normalized_input)
    if as_json:
        print_json(result.to_json())
    else:
        print_pairs(_described(result, cache))
        print_next(["python", "-c", result.loading])


def _export_latents(sae_dir: Path, out: str, cache: str, options: dict[str, Any], as_json: bool) -> None:
    from ..evaluate.export import export_delphi

    given = {option[2:].replace("-", "_"): value for option, value in options.items() if value}
    result: LatentExport = export_delphi(sae_dir, out, cache=cache, **given)
    if as_json:
        print_json({"path": str(result.path), "format": result.format, **result.facts})
        return
    facts = [(key.replace("_", " "), _shown(value)) for key, value in result.facts.items()]
    print_pairs([("export", str(result.path)), ("format", result.format), *facts])
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
                f"L0 {comparison.l0:.2f} here, {comparison.l0_exported:.2f} there; "
                f"FVU {comparison.fvu:.4f} here, {comparison.fvu_exported:.4f} there",
            ),
        ]
    if result.unknown:
        where = "neither the SAE nor the cache says it" if cache else "the cache may say it: give --cache"
        pairs.append(("not known", f"{', '.join(result.unknown)} ({where})"))
    return pairs
