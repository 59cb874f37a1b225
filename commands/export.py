"""The command "saecache export"."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .printing import JsonFlag, print_json, print_next, print_pairs

if TYPE_CHECKING:
    from ..evaluate.export import Export


def export(
    sae_dir: Annotated[Path, typer.Argument(metavar="SAE_DIR", help="The SAE: RUN_DIR/<variant>/sae.")],
    format_: Annotated[
        str, typer.Option("--format", help="saelens, dictionary_learning or sparsify.", show_default=False)
    ],
    out: Annotated[str, typer.Option(help="A new folder.", show_default=False)],
    cache: Annotated[
        str | None,
        typer.Option(help="The cache it was trained from: compares on held-out rows, and names the text."),
    ] = None,
    normalized_input: Annotated[
        bool,
        typer.Option(
            "--normalized-input",
            help="Rows that are handed in will be normalized as the cache does it. Default: raw activations.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write an SAE in the format of another library, and check that it computes the same there.

    The folder appears only if a plain version of the library's forward pass, on what was written, has the
    same active latents, features and reconstructions.
    """
    from ..evaluate.export import export_sae

    result = export_sae(sae_dir, format_, out, cache=cache, normalized_input=normalized_input)
    if as_json:
        print_json(result.to_json())
    else:
        print_pairs(_described(result, cache))
        print_next(["python", "-c", result.loading])


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
