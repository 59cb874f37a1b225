"""The command "saecache inspect": a text's tokens with their strongest latents."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.errors import UsageError
from .printing import JsonFlag, print_json

if TYPE_CHECKING:
    from ..harvest import LanguageModel
    from ..train import SAE


def inspect(
    sae: Annotated[
        str, typer.Argument(help="An SAE folder, a run folder with one SAE in it, or hf://ORG/NAME.")
    ],
    text: Annotated[str, typer.Argument(help="The text; quote it.")],
    top: Annotated[int, typer.Option(min=1, help="Latents shown of each token.")] = 5,
    model: Annotated[
        str | None, typer.Option(help="Where the language model is now. Default: where the SAE's was.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Where the model's adapter is now. Default: where the SAE's was.")
    ] = None,
    bos: Annotated[
        bool,
        typer.Option(
            help="Begin with the tokenizer's BOS token, if it has one. --no-bos leaves it out, for an SAE of "
            "a cache that was harvested with tokens.bos=never."
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Print the tokens of a text with their strongest latents, as latent:activation."""
    from ..train import load_sae

    loaded = load_sae(sae)
    language_model = _load_model(loaded, model, adapter, device)
    tokens = _describe_tokens(loaded, language_model, text, top, with_bos=bos)
    if as_json:
        print_json({"sae": str(sae), "hook": loaded.cfg.hook, "tokens": tokens})
        return
    from ..common.tables import format_columns

    rows = [["token", "active", f"strongest latents of {loaded.cfg.name}"]]
    for token in tokens:
        shown = "  ".join(f"{latent['index']}:{latent['activation']:.3g}" for latent in token["latents"])
        rows.append([repr(token["text"]), str(token["active"]), shown])
    typer.echo(format_columns(rows, num_text=3))


def _load_model(sae: "SAE", name: str | None, adapter: str | None, device: str) -> "LanguageModel":
    """The model that the SAE was trained on, with its adapter, checked by their hashes."""
    from ..harvest.model.files import locate_model
    from ..harvest.model.reloading import load_recorded

    if sae.cfg.cache.get("beside"):
        raise UsageError(
            f"SAE {sae.cfg.name} was trained on the caches of several models ({sae.cfg.hook}), and inspect "
            "runs one: 'saecache evaluate' takes such SAEs"
        )
    facts = sae.cfg.cache.get("model")
    facts = facts if isinstance(facts, Mapping) else {}
    place, revision = name or facts.get("name"), facts.get("revision")
    if not isinstance(place, str):
        raise UsageError(f"SAE {sae.cfg.name} names no language model: say which with --model")
    try:
        files = locate_model(place, revision if name is None and isinstance(revision, str) else None)
    except UsageError as error:
        if name is not None:
            raise
        raise UsageError(f"{error}. If the model is in a folder, say where: --model FOLDER") from None
    return load_recorded(facts, files, f"SAE {sae.cfg.name}", adapter=adapter, device=device)


def _describe_tokens(
    sae: "SAE", model: "LanguageModel", text: str, top: int, *, with_bos: bool
) -> list[dict[str, Any]]:
    """Each token's text and how many latents are active on it, with the ``top`` strongest, the strongest
    first.

    With ``with_bos`` the text begins with BOS if the tokenizer has one; BOS itself is not shown.
    """
    import numpy as np
    import torch

    from ..harvest.model.tokenizer import show_token
    from ..harvest.text.tokenizing import encode
    from ..train.sae_hooks import encoded_hooks

    (ids,) = encode(model.tokenizer, [text])
    if len(ids) == 0:
        raise UsageError("the text has no tokens: give some words")
    bos = [model.tokenizer.bos_token_id] if with_bos and model.tokenizer.bos_token_id is not None else []
    whole = torch.from_numpy(np.concatenate([np.asarray(bos, dtype=np.int64), ids.astype(np.int64)]))
    hooks = [part.hook for part in encoded_hooks(sae.cfg)]
    found = model.activations(whole[None], hooks)
    x_TD = torch.cat([found[hook][0, len(bos) :].cpu().float() for hook in hooks], dim=-1)
    codes = sae.encode_sparse(x_TD, input="raw")
    tokens = []
    for position, token in enumerate(ids):
        own = slice(int(codes.row_ptr[position]), int(codes.row_ptr[position + 1]))
        latent, value = codes.latent[own], codes.value[own]
        order = torch.argsort(value.abs(), descending=True, stable=True)[:top]
        tokens.append(
            {
                "id": int(token),
                "text": show_token(model.tokenizer, int(token)),
                "active": int((value != 0).sum()),
                "latents": [{"index": int(latent[i]), "activation": float(value[i])} for i in order],
            }
        )
    return tokens
