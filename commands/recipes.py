"""The command "saecache recipes"."""

from typing import Annotated

import typer

from .printing import JsonFlag, print_json


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's YAML.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the shipped recipes, or print one."""
    from ..configs import find_recipe, list_recipes

    if name is not None:
        recipe = find_recipe(name)
        if as_json:
            print_json({"kind": recipe.kind, "name": recipe.name, "yaml": recipe.text})
        else:
            typer.echo(recipe.text, nl=False)
        return
    found = list_recipes()
    if as_json:
        print_json([{"kind": r.kind, "name": r.name, "summary": r.summary} for r in found])
        return
    width = max((len(r.name) for r in found), default=0)
    for recipe in found:
        typer.echo(f"{recipe.kind:9} {recipe.name:{width}}  {recipe.summary}")
    typer.echo("\nPrint one:  saecache recipes NAME     Start from one:  saecache recipes NAME > my.yaml")
