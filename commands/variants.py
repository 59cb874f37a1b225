"""The command "saecache variants"."""

import sys

import typer

from .printing import JsonFlag, print_json


def variants(as_json: JsonFlag = False) -> None:
    """List the kinds of SAE that a config can name, and the packages that others come from."""
    from ..train.variants import VARIANTS

    problems = VARIANTS.load_all()
    found = [
        {
            "kind": kind,
            "package": "saecache" if kind in VARIANTS.built_in else variant.__module__.partition(".")[0],
            "summary": first_sentence(sys.modules[variant.__module__].__doc__ or variant.__doc__ or ""),
        }
        for kind, variant in sorted(VARIANTS.items())
    ]
    if as_json:
        print_json({"variants": found, "problems": problems})
        return
    width = max(len(line["kind"]) for line in found)
    for line in found:
        package = "" if line["package"] == "saecache" else f"[{line['package']}] "
        typer.echo(f"{line['kind']:{width}}  {package}{line['summary']}")
    for problem in problems.values():
        typer.echo(f"not usable: {problem}", err=True)


def first_sentence(docstring: str) -> str:
    """What a variant does, as the file's docstring begins."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".") + "."
