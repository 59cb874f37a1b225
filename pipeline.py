"""The stages put together, for the commands that need more than one: ``evaluate`` with a model, and ``demo``.

This is the one place above harvest, train and evaluate, which never import one another upwards.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from time import monotonic
from typing import TYPE_CHECKING, Any

from .common.errors import UsageError
from .configs import load_config

if TYPE_CHECKING:
    from .evaluate import EvaluateConfig
    from .evaluate.judge import InterpretConfig, Interpreted
    from .evaluate.probing.texts import TextReader
    from .evaluate.results import Results
    from .harvest import LanguageModel
    from .store import ActivationCache


SHORT_DEMO = {"harvest": ["num_tokens=60000"], "train": ["epochs=1"], "evaluate": ["ce_tokens=2000"]}
"""Overrides of the three recipes called demo, for ``--short``."""


def evaluate(
    targets: Sequence[Path | str] | Path | str,
    cache: "ActivationCache | Path | str",
    config: "EvaluateConfig | Mapping[str, Any]",
    *,
    out: Path | str | None = None,
    with_model: bool = True,
) -> "Results":
    """Measure SAE or run folders on the cache's held-out rows, with the model that the cache names.

    Args:
        targets: the folders, or one.
        cache: a folder, a URL, or an open cache.
        config: the settings, or a mapping of them.
        out: the results file; None: ``results.json`` in the folder of the SAEs.

    Raises:
        UsageError: no SAE there, SAEs of another cache, or settings or a place that cannot be used.
    """
    from .common.devices import choose_device
    from .common.outputs import check_file_output
    from .common.validation import validate
    from .distributed import world
    from .evaluate import EvaluateConfig, run
    from .evaluate.probing.labelled import load_labelled
    from .evaluate.targets import choose_output, find_targets, find_targets_of
    from .harvest import load_model_of
    from .harvest.model.tokenizer import load_tokenizer_of, show_token
    from .harvest.model.unembedding import read_unembedding
    from .store import ActivationCache, open_cache

    # all of this is looked at before a model is loaded
    targets = [targets] if isinstance(targets, str | Path) else list(targets)
    config = validate(EvaluateConfig, config, "config")
    out = choose_output(targets) if out is None else Path(out)
    found = find_targets(targets)
    check_file_output(out)
    if not isinstance(cache, ActivationCache):
        cache = open_cache(cache, beside=config.beside, group=world().everyone)
    find_targets_of(found, cache, other_cache=config.other_cache)
    for source in config.probing.data:
        load_labelled(source, config.probing, config.seed)
    model, beside = None, {}
    choose_device(config.device)
    if with_model and _names_model(cache):
        try:
            model = load_model_of(cache, name=config.model_folder, device=config.device)
            beside = {
                name: load_model_of(other, device=config.device)
                for name, other in cache.beside.items()
                if _names_model(other)
            }
        except UsageError as error:
            raise UsageError(f"{error}; --no-model measures without CE and KL") from None
    decode, notes = None, []
    if model is not None:
        decode = partial(show_token, model.tokenizer)
    elif _names_model(cache) and cache.manifest.tokens == "ids and documents" and config.shows_latents:
        try:
            decode = partial(show_token, load_tokenizer_of(cache))
        except UsageError as error:
            notes.append(f"Tokens are shown as numbers, because their tokenizer is not here: {error}")
    reader = None if model is None else text_reader(model, cache)
    return run(
        found,
        cache,
        config,
        model=model,
        models_beside=beside,
        decode_token=decode,
        reader=reader,
        unembedding=None if model is None else read_unembedding(model),
        out=out,
        notes=notes,
    )


def interpret(
    targets: Sequence[Path | str],
    cache_path: Path | str,
    config: "InterpretConfig",
    *,
    results: Path | None = None,
    answers: Path | None = None,
    other_cache: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> "Interpreted":
    """Have a judge explain and score latents of SAE or run folders; the cache's model gives its tokenizer."""
    from .evaluate.judge import interpret as ask_judge
    from .evaluate.targets import choose_output, find_targets
    from .harvest.model.tokenizer import load_tokenizer_of
    from .store import open_cache

    results = results or choose_output(targets)
    found = find_targets(targets)
    cache = open_cache(cache_path)
    tokenizer = load_tokenizer_of(cache)

    def decode(ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).encode("utf-8", "replace").decode("utf-8")  # without halves of surrogate pairs

    return ask_judge(
        found, cache, config, decode, results=results, answers=answers, other_cache=other_cache,
        dry_run=dry_run, say=say,
    )  # fmt: skip


def _names_model(cache: "ActivationCache") -> bool:
    return "model" in cache.manifest.identity


def text_reader(model: "LanguageModel", cache: "ActivationCache") -> "TextReader":
    """The model for texts that are not in the cache; they begin as the cache's sequences do."""
    from .evaluate.probing.texts import TextReader
    from .harvest.model.tokenizer import list_vocabulary
    from .harvest.text.tokenizing import encode

    packing = cache.manifest.identity.get("packing")
    bos_id = packing.get("bos_id") if isinstance(packing, Mapping) else None
    return TextReader(
        model=model,
        tokenize=lambda texts: encode(model.tokenizer, texts),
        bos_id=bos_id if isinstance(bos_id, int) else None,
        vocabulary=lambda: list_vocabulary(model.tokenizer),
        max_positions=model.max_positions,
    )


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What the demo made: ``text`` for people, ``facts`` for ``--json``."""

    text: str
    facts: dict[str, Any]


def run_demo(out: Path, *, short: bool = False) -> DemoSummary:
    """Harvest the built-in model on the standard library's text, train five SAEs, evaluate, report.

    Makes ``out/cache``, ``out/runs/demo``, ``out/results.json``, ``out/report.html``. Running it again on an
    interrupted folder continues; on a finished one it only measures and reports again.
    """
    from .common.outputs import check_folder_output
    from .evaluate import EvaluateConfig, format_table, write_report
    from .harvest import HarvestConfig
    from .harvest import run as run_harvest
    from .train import TrainConfig
    from .train import run as run_train

    started = monotonic()
    overrides = SHORT_DEMO if short else {}
    harvest_config = load_config(HarvestConfig, "demo", overrides.get("harvest", ()), kinds=("harvest",))
    train_config = load_config(TrainConfig, "demo", overrides.get("train", ()), kinds=("train",))
    evaluate_config = load_config(EvaluateConfig, "demo", overrides.get("evaluate", ()), kinds=("evaluate",))
    check_folder_output(out)
    cache_path, run_dir = out / "cache", out / "runs" / "demo"
    with _without_loading_bars():
        run_harvest(harvest_config, cache_path)
        run_train(train_config, cache_path, run_dir)
        results = evaluate([run_dir], cache_path, evaluate_config, out=out / "results.json")
    write_report([run_dir], out / "report.html", results=out / "results.json")
    program = _program()
    lines = [
        "",
        format_table(results),
        "",
        f"made in {monotonic() - started:.0f} s:",
        f"  {cache_path}    the cache (any Zarr reader opens it)",
        f"  {run_dir}    the SAEs, each in <name>/sae",
        f"  {out / 'results.json'}    the figures above, and more",
        f"  {out / 'report.html'}    open it in a browser",
        "",
        "try next:",
        f"  {program} browse {quote(str(out))}",
        f"  {program} cache info {quote(str(cache_path))}",
        f"  {program} train papers/mutual-and-feature-choice-demo --cache {quote(str(cache_path))} "
        f"--out {quote(str(out / 'choice'))}",
        f"  {program} recipes",
    ]
    facts = {
        "cache": str(cache_path),
        "run": str(run_dir),
        "results": json.loads(results.model_dump_json()),
        "report": str(out / "report.html"),
    }
    return DemoSummary(text="\n".join(lines), facts=facts)


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    """Transformers draws a bar while it loads weights, which takes no time for the demo's model."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _program() -> str:
    """How this command line is called from here: by its name where the shell finds it, else by its path."""
    if shutil.which("saecache"):
        return "saecache"
    return quote(os.path.relpath(Path(sys.executable).with_name("saecache")))
