"""The command "saecache doctor"."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..common.outputs import check_file_output
from .settings import SetOption, load_settings

INTERRUPTED = "interrupted; the report has what was done before"


def doctor(
    quick: Annotated[
        bool, typer.Option("--quick", help="About a minute on two cores; without it up to eight.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="D", help="Check cpu, cuda, cuda:1 or auto; auto, a GPU if there is one, is the default."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report to this JSON file.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write it to this Markdown file.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Say what this machine has, check that saecache computes rightly on it, and measure how fast it is.

    Prints the report in Markdown, which can be pasted into an issue; it holds no credentials. The exit status
    is 1 if a check fails. Ctrl-C ends it early and prints what was done. Temporary files are removed.
    """
    for path in (json_file, markdown_file):
        if path is not None:
            check_file_output(path)
    overrides = [*(set_ or []), *([f"device={device}"] if device is not None else [])]
    recipe = "doctor/quick" if quick else "doctor/default"
    settings = load_settings("doctor", "DoctorConfig", recipe, overrides, "doctor")
    from ..doctor import examine, render
    from ..store.durable import write_bytes

    report = examine(settings, describe_command(quick, overrides))
    text = render(report)
    typer.echo(text)
    if markdown_file is not None:
        write_bytes(markdown_file, text.encode("utf-8"))
    if json_file is not None:
        report.write(json_file)
    if report.interrupted:
        raise KeyboardInterrupt
    if not report.passed:
        raise typer.Exit(1)


def describe_command(quick: bool, overrides: list[str]) -> str:
    """What was typed, without the places of this machine."""
    words = ["saecache", "doctor", *(["--quick"] if quick else [])]
    for override in overrides:
        key, _, value = override.partition("=")
        words += ["--set", f"{key}={'PATH' if key == 'folder' else value}"]
    return shlex.join(words)
