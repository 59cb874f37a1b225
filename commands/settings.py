"""CONFIG and ``--set`` of the commands, with what can be checked before heavy imports."""

from importlib import import_module
from typing import Annotated, Any

import typer

ConfigArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.SUB=VALUE", help="Override one setting of CONFIG; may be repeated."),
]


def load_settings(
    package: str, class_name: str, config: str, overrides: list[str] | None, *kinds: str
) -> Any:
    """CONFIG and overrides as the config class ``class_name`` that ``package`` offers.

    A missing file, bad YAML and unknown names are found before the package is imported, which takes seconds
    where it imports torch.

    Raises:
        UsageError: as :func:`..configs.load_config`.
    """
    from ..configs import read_settings

    settings = read_settings(config, overrides or [], kinds=kinds)
    settings.check_names(package, class_name)
    return settings.validate(getattr(import_module(f"..{package}", __package__), class_name))
