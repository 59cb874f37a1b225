"""The model card of a published SAE: README.md with the metadata that the Hub reads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..common.printable import printable
from ..evaluate.results import Results, SaeResult
from ..evaluate.table_figures import choose_figures
from ..train.run_files import RECIPE_FILE
from ..train.sae_config import SAEConfig

PLOT_NAME = "results.svg"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w-]*")
_MAX_RECIPE = 200  # lines shown in the card


def make_card(
    cfg: SAEConfig,
    url: str,
    *,
    result: SaeResult | None,
    results: Results | None,
    recipe: str | None,
    version: str,
    license_name: str | None = None,
) -> str:
    """Write the model card of a published SAE: the text of its README.md.

    Args:
        cfg: the SAE's configuration.
        url: where it is published, for the lines that load it.
        result, results: what was measured of it; None leaves that out.
        recipe: the settings of its run, as YAML.
        version: the version of saecache that publishes it.
        license_name: the Hub's name of a licence, as ``mit``; without it the card states none.
    """
    lines = [
        "---",
        yaml.safe_dump(_metadata(cfg, results, license_name), sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {_plain(cfg.name)}: a sparse autoencoder",
        "",
        f"{cfg.num_latents:,} latents of kind `{_code(cfg.kind)}` for the activations at `{_code(cfg.hook)}` "
        f"(width {cfg.d_model:,}) of {_model_words(cfg)}, trained with saecache {version} from a cache of "
        "activations.",
        "",
        *_usage(cfg, url),
        *(_results(result, results) if result and results else ["No results were published with it.", ""]),
        *_origin(cfg, results),
        *(_recipe(recipe) if recipe else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _metadata(cfg: SAEConfig, results: Results | None, license_name: str | None) -> dict[str, Any]:
    """What the Hub finds models by. Names that cannot be of the Hub (paths of a disk) are left out."""
    values: dict[str, Any] = {"library_name": "saecache"}
    if license_name is not None:
        values["license"] = license_name
    model = cfg.cache.get("model_name")
    if isinstance(model, str) and _HUB_NAME.fullmatch(model):
        values["base_model"] = model
    text = results.cache.identity.get("text") if results else None
    if isinstance(text, Mapping) and text.get("kind") == "hub":
        dataset = str(text.get("dataset"))
        if _HUB_NAME.fullmatch(dataset):
            values["datasets"] = [dataset]
    values["tags"] = ["saecache", "sparse-autoencoder", "mechanistic-interpretability", cfg.kind]
    return values


def _usage(cfg: SAEConfig, url: str) -> list[str]:
    return [
        "## Use it",
        "",
        "```python",
        "import saecache",
        "",
        f'sae = saecache.load_sae("{url}")',
        f'codes = sae.encode(x, input="raw")  # x [rows, {cfg.d_model}], the model\'s own activations',
        'reconstruction = sae(x, input="raw")',
        "```",
        "",
        f"It normalizes rows by itself (`{_code(str(cfg.normalization.get('kind')))}`); with "
        '`input="normalized"` it takes rows that are normalized already.',
        "",
    ]


def _results(result: SaeResult, results: Results) -> list[str]:
    lines = [
        "## Results",
        "",
        f"![Results]({PLOT_NAME})",
        "",
        "| figure | value | 95 % interval | what it is |",
        "|---|---|---|---|",
    ]
    for figure in choose_figures([result]):
        found = figure.read(result)
        lines.append(f"| {figure.label} | {figure.show(found.value)} | {found.between} | {figure.help} |")
    cost = result.language_model
    scored = f"; {cost.num_tokens:,} tokens for CE and KL" if cost else ""
    split = results.cache.split.replace("heldout", "held-out")
    return [
        *lines,
        "",
        f"Measured on {results.cache.rows:,} {_plain(split)} rows{scored}. `results.json` has "
        "every figure and its definition.",
        "",
    ]


def _origin(cfg: SAEConfig, results: Results | None) -> list[str]:
    model = cfg.cache.get("model")
    facts = model if isinstance(model, Mapping) else {}
    training = cfg.training
    rows: Sequence[tuple[str, Any]] = [
        ("model", cfg.cache.get("model_name")),
        ("revision", facts.get("revision")),
        ("sha256 of its weights", facts.get("weights_sha256")),
        ("hook", cfg.hook),
        ("fingerprint of the cache", cfg.cache.get("fingerprint")),
        ("context", results.cache.context if results else None),
        ("rows trained on", training.get("rows")),
        ("steps", training.get("step")),
        ("seed", training.get("seed")),
    ]
    known = [(label, value) for label, value in rows if value is not None]
    shown = [
        f"| {label} | `{_code(f'{v:,}' if isinstance(v, int) and v > 9999 else str(v))}` |"
        for label, v in known
    ]
    return ["## Where it comes from", "", "| | |", "|---|---|", *shown, ""]


def _recipe(recipe: str) -> list[str]:
    lines = recipe.rstrip().splitlines()
    more = (
        [f"# ... {len(lines) - _MAX_RECIPE} more lines, see {RECIPE_FILE}"]
        if len(lines) > _MAX_RECIPE
        else []
    )
    shown = [printable(line).replace("```", "'''") for line in lines[:_MAX_RECIPE]]
    return [
        "## Recipe",
        "",
        f"The settings of its run, for `saecache train {RECIPE_FILE} --cache CACHE`:",
        "",
        "```yaml",
        *shown,
        *more,
        "```",
    ]


def _model_words(cfg: SAEConfig) -> str:
    name = cfg.cache.get("model_name")
    return f"`{_code(str(name))}`" if name else "an unnamed source"


def _plain(text: str) -> str:
    """A name in a sentence of Markdown: nothing in it is markup, and it stays on its line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|])", r"\\\1", printable(text))


def _code(text: str) -> str:
    """A name between backquotes, in a table too."""
    return printable(text).replace("`", "'").replace("|", "\\|")
