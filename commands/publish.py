"""The command "saecache publish"."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .printing import JsonFlag, print_json, print_next, print_pairs


def publish(
    sae: Annotated[Path, typer.Argument(metavar="RUN/VARIANT", help="The SAE: a variant of a run.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="hf://ORG/NAME, or a place in a bucket.")],
    results: Annotated[
        Path | None, typer.Option(help="Its results file. Default: results.json in the run folder.")
    ] = None,
    without_results: Annotated[
        bool, typer.Option("--without-results", help="Publish an SAE that was not measured.")
    ] = False,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="The licence, as the Hub calls it: mit.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Another SAE that is there may be replaced.")
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the files to a new folder, and publish nothing."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Publish an SAE with a model card: its results, its recipe, the fingerprint of its cache, a plot.

    A repository of the Hub that does not exist is made, private. Run the same command again after an
    interruption: it continues. The token comes from HF_TOKEN, or from 'hf auth login'.
    """
    from ..common.counts import format_bytes
    from ..publishing import publish_sae

    done = publish_sae(
        sae,
        url,
        results=results,
        without_results=without_results,
        license_name=license_,
        replace=replace,
        preview=preview,
    )
    if as_json:
        print_json({**asdict(done), "preview": None if preview is None else str(preview)})
        return
    what = f"{len(done.files)} files, {format_bytes(sum(done.files.values()))}"
    if preview is not None:
        print_pairs([("preview", str(preview)), ("files", what)])
    else:
        print_pairs(
            [
                ("SAE", done.name),
                ("url", done.url),
                ("files", what),
                ("sent", ", ".join(done.sent) or "nothing: everything is there"),
            ]
        )
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if preview is None:
        print_next(["python", "-c", f"import saecache; print(saecache.load_sae('{done.url}').cfg.name)"])
