"""The command "saecache import"."""

from typing import Annotated, Any

import typer

from ..common.errors import UsageError
from ..common.lookups import is_folder
from .printing import JsonFlag, print_json, print_next, print_pairs


def import_sae(
    sae: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="An SAE of SAELens, dictionary_learning, sparsify, Gemma Scope or Llama Scope: a folder, or "
            "hf://ORG/NAME[@REVISION][/FOLDER].",
        ),
    ],
    out: Annotated[str, typer.Option(help="A new folder, for an SAE of saecache.", show_default=False)],
    hook: Annotated[
        str | None, typer.Option(help="Its hook in our words, as resid_post.7. Default: what its files say.")
    ] = None,
    scaling_factor: Annotated[
        float | None,
        typer.Option(
            help="What its rows are multiplied by, for SAELens's expected_average_only_in: sqrt(D) / mean "
            "norm of the training rows, or 1 if that is folded into the weights."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write an SAE of another library as one of saecache, with another hook or scale than its files say.

    Every command also takes such folders as they are.
    """
    from ..evaluate.export.new_folder import check_new, new_folder
    from ..train.foreign.formats import FORMATS, find_format
    from ..train.foreign.hub import find_folder

    source = find_folder(sae)
    name = find_format(source)
    if name is None:
        what = "give the folder that has its weights" if is_folder(source) else "there is no such folder"
        raise UsageError(f"no SAE of {', '.join(FORMATS)} in {sae}: {what}")
    settings: dict[str, Any] = {"hook": hook}
    if scaling_factor is not None:
        if name != "saelens":
            raise UsageError(f"--scaling-factor has no effect on an SAE of {name}: leave it out")
        settings["scaling_factor"] = scaling_factor
    path = check_new(out, 0)
    loaded = FORMATS[name].load(source, **settings)
    with new_folder(path) as folder:
        loaded.save(folder)
    cfg = loaded.cfg
    facts = {
        "sae": str(path),
        "format": name,
        "kind": cfg.kind,
        "hook": cfg.hook,
        "model": cfg.cache["model_name"],
        "width": cfg.d_model,
        "latents": cfg.num_latents,
        "normalization": loaded.normalizer.kind,
    }
    if as_json:
        print_json(facts)
    else:
        print_pairs(
            [(key, f"{value:,}" if isinstance(value, int) else str(value)) for key, value in facts.items()]
        )
        print_next(["saecache", "evaluate", path, "--cache", "CACHE"])
