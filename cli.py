"""The command line: the table of all commands. What each does is in ``commands/``.

Heavy imports wait inside the commands, so that ``--help`` answers at once.
"""

from typing import Annotated

import typer

from .commands import (
    browse,
    cache,
    doctor,
    evaluate,
    export,
    import_sae,
    inspect,
    interpret,
    publish,
    recipes,
    sharing,
    stages,
    train,
    variants,
)
from .commands.border import INTERRUPTED_STATUS, RESUMES, add_command, end_at_once, note_interrupts


def _group(text: str) -> typer.Typer:
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group(
    "Harvest language-model activations once, then train every sparse autoencoder from the cache.\n\n"
    "Start with 'saecache demo --out demo', or with 'saecache recipes' for the shipped configurations.\n\n"
    "With SAECACHE_DEBUG=1 in the environment, failures show their stack trace."
)
cache_app = _group("Look at caches, check them, share them, cut and join them.")

add_command(app, "harvest", stages.harvest, interrupted=RESUMES, several=True)
add_command(app, "train", train.train, interrupted=RESUMES, several=True)
add_command(app, "synthetic", stages.synthetic)
add_command(app, "evaluate", evaluate.evaluate, several=True)
add_command(app, "interpret", interpret.interpret, interrupted=RESUMES)
add_command(app, "report", stages.report)
add_command(app, "browse", browse.browse)
add_command(app, "export", export.export)
add_command(app, "import", import_sae.import_sae)
add_command(app, "publish", publish.publish, interrupted=RESUMES)
add_command(app, "inspect", inspect.inspect)
add_command(app, "recipes", recipes.recipes)
add_command(app, "variants", variants.variants)
add_command(app, "demo", stages.demo, interrupted=RESUMES)
add_command(app, "doctor", doctor.doctor, interrupted=doctor.INTERRUPTED)
app.add_typer(cache_app, name="cache")
add_command(cache_app, "info", cache.cache_info)
add_command(cache_app, "verify", cache.cache_verify)
add_command(cache_app, "slice", cache.cache_slice, interrupted=RESUMES)
add_command(cache_app, "merge", cache.cache_merge, interrupted=RESUMES)
add_command(cache_app, "convert", cache.cache_convert, interrupted=RESUMES)
add_command(cache_app, "push", sharing.cache_push, interrupted=RESUMES)
add_command(cache_app, "pull", sharing.cache_pull, interrupted=RESUMES)
add_command(cache_app, "ls", sharing.cache_ls)
add_command(cache_app, "rm", sharing.cache_rm, interrupted=RESUMES)


def _print_version(asked: bool) -> None:
    if asked:
        from . import __version__

        typer.echo(f"saecache {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Console script."""
    note_interrupts()
    try:
        app()
    except SystemExit as error:
        if error.code == INTERRUPTED_STATUS:
            end_at_once()
        raise


if __name__ == "__main__":
    main()
