"""Harvest tokens per second against the bare truncated forward, at the same number type and batch.

A harvest reads and tokenizes text, runs the model, selects, normalizes and writes with its commits; with the
shuffle it also writes the final arrays. The bare forward is the base model, cut after the hook's block, on
token ids that are ready, in the better of two shapes: the batch, and the harvest's inner block on a CPU. The
ratio can be above 1, since a harvest's forwards have the shape that is fastest on a processor.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...harvest import HarvestConfig
from ...harvest import run as harvest
from ...harvest.builtin import DEMO_MODEL_PATH
from ...harvest.model.forward import choose_batch_size, cpu_block
from ...harvest.model.language_model import LanguageModel
from ..config import Sizes
from ..notes import Notes
from ..timing import ratios, timed, waiting_for

CONTEXT = 128
WARM_TOKENS = 4000  # go through the model before the clock runs
LEAST_TOKENS = 1000
FORWARDS_OF_A_ROUND = 4  # about as many bare forwards of all tokens as a round takes time
GPT2_SMALL = {"width": 768, "layers": 12, "heads": 12}


def measure_harvest(notes: Notes, sizes: Sizes, device: torch.device, folder: Path) -> None:
    """The section ``harvest``."""
    name = sizes.model
    if name == "gpt2-sized":
        name = str(folder / "model")
        make_gpt2(folder / "model", context=CONTEXT, **GPT2_SMALL)
    notes.say(f"harvest: {sizes.tokens:,} tokens with {sizes.model}")
    with notes.attempt("harvesting"), quiet():
        model = LanguageModel.load(name, device=str(device))
        block = model.num_layers // 2
        hook = f"resid_post.{block}"
        batch = choose_batch_size(model, [hook], CONTEXT)
        config = HarvestConfig.model_validate(
            {
                "model": {"name": name},
                "text": {"kind": "builtin"},
                "tokens": {"context": CONTEXT},
                "hooks": [hook],
                "num_tokens": sizes.tokens,
                "batch_size": batch,
                "device": str(device),
                "heldout_fraction": 0.0,
            }
        )
        shapes = {batch, cpu_block(CONTEXT)} if device.type == "cpu" else {batch}
        bare = cut_after(model.model.base_model, block)
        dtype = str(model.dtype).removeprefix("torch.")
        del model
        tokens = affordable_tokens(bare, sizes.tokens, max(shapes), device, notes.seconds_left())
        if tokens < sizes.tokens:
            notes.leave_out(f"{sizes.tokens:,} tokens", f"slow or busy: {tokens:,} instead")
            config = config.model_copy(update={"num_tokens": tokens})
        seconds: dict[str, list[float]] = {"bare forward": [], "harvest": [], "harvest with the shuffle": []}
        for number in range(sizes.rounds):
            if number and not notes.time_left():
                break
            seconds["bare forward"].append(min(bare_seconds(bare, tokens, shape, device) for shape in shapes))
            result = harvest(config, folder / f"harvest-{number}", force=True)
            share = tokens / result.manifest.counts["tokens"]
            seconds["harvest"].append(result.harvest_seconds * share)
            seconds["harvest with the shuffle"].append(
                (result.harvest_seconds + result.shuffle_seconds) * share
            )
    group = f"harvest: {sizes.model} in {dtype}, {hook}, batches of [{batch}, {CONTEXT}] on {device}"
    for what, taken in seconds.items():
        notes.measure(group, what, "tokens/s", [tokens / s for s in taken])
    for what in ("harvest", "harvest with the shuffle"):
        notes.measure(group, f"{what} / bare forward", "", ratios(seconds["bare forward"], seconds[what]))


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what a harvest tells its user on stderr: the doctor shows its own progress."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield


def make_gpt2(folder: Path, *, width: int, layers: int, heads: int, context: int) -> None:
    """GPT-2 with random weights, and the tokenizer of the embedded model."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads, n_positions=max(context, 1024), **ids)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def cut_after(base: Any, block: int) -> nn.Module:
    """The base model of a GPT-2 or a GPT-NeoX without what follows its block number ``block``."""
    blocks, norm = ("h", "ln_f") if hasattr(base, "h") else ("layers", "final_layer_norm")
    setattr(base, blocks, getattr(base, blocks)[: block + 1])
    setattr(base, norm, nn.Identity())
    cut: nn.Module = base
    return cut


def affordable_tokens(model: nn.Module, wanted: int, batch: int, device: torch.device, seconds: float) -> int:
    """``wanted`` tokens, or as many as a round of about ``seconds`` has time for; it warms the model up."""
    bare_seconds(model, batch * CONTEXT, batch, device)
    of_a_token = bare_seconds(model, WARM_TOKENS, batch, device) / WARM_TOKENS
    return max(LEAST_TOKENS, min(wanted, int(seconds / (FORWARDS_OF_A_ROUND * of_a_token))))


def bare_seconds(
    model: nn.Module, tokens: int, batch: int, device: torch.device, context: int = CONTEXT
) -> float:
    """Seconds for ``tokens`` tokens in forwards of [batch, context]."""
    ids = torch.randint(0, 4096, (batch, context), device=device)
    forwards = max(1, round(tokens / (batch * context)))

    def run_forwards() -> None:
        for _ in range(forwards):
            model(input_ids=ids, use_cache=False)

    with torch.no_grad():
        return timed(run_forwards, waiting_for(device)).seconds * tokens / (forwards * batch * context)
