"""The command "saecache browse": the report's page, served from this machine."""

from pathlib import Path
from typing import Annotated

import typer


def browse(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders that 'saecache evaluate' has measured, or results files."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8765,
) -> None:
    """Look at every latent in a browser: the report's page, for dictionaries too large for one file.

    Latents are read from the disk as one scrolls. Only this machine can open the page.
    """
    from ..evaluate.report.server import make_server

    with make_server(runs, port) as server:
        typer.echo(f"{server.url} shows {', '.join(map(str, runs))}: open it in a browser; Ctrl-C ends.")
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            typer.echo("ended", err=True)
