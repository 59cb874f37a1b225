"""Harvest tokens per second against the bare truncated forward, at the same dtype and batch.

    python benchmarks/harvest.py            # GPT-2 small's size, random weights
    python benchmarks/harvest.py --quick    # a smaller model, under a minute

Both run in one process by turns; the figures are medians. "Harvest" is reading and tokenizing text, the
forward, selection, normalization and writing with its commits; "with the shuffle" adds the final shuffled
arrays, which a harvest writes once at its end. The bare forward is the base model cut after the hook's block,
on ready token ids, in the better of two shapes: the batch, and the harvest's inner block. Target: harvest /
bare at least 0.95. The ratio of processor times says the same on a machine that others use too.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saecache.harvest import HarvestConfig, runner
from saecache.harvest.builtin.stdlib_text import stdlib_documents
from saecache.harvest.forward import choose_batch_size, cpu_block
from saecache.harvest.job import HarvestJob
from saecache.harvest.model import LanguageModel
from saecache.harvest.runner import HarvestResult

TARGET = 0.95


def make_model(folder: Path, *, width: int, layers: int, heads: int, context: int) -> None:
    """GPT-2 with random weights, and the tokenizer of the embedded model."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from saecache.harvest.builtin import DEMO_MODEL_PATH

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads, n_positions=max(context, 1024), **ids)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_text(folder: Path) -> str:
    """The standard library as JSON lines: reading it from there costs what reading a dataset costs."""
    folder.mkdir()
    with (folder / "text.jsonl").open("w") as file:
        for name, text in stdlib_documents():
            file.write(json.dumps({"name": name, "text": text}) + "\n")
    return str(folder)


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and of all processors."""

    wall: float
    cpu: float


@contextmanager
def cost() -> Iterator[list[Cost]]:
    """Fills the list it yields with the cost of its body."""
    found: list[Cost] = []
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    found.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))


def bare_cost(model: torch.nn.Module, tokens: int, batch: int, context: int) -> Cost:
    """Cost of ``tokens`` tokens in forwards of [batch, context]."""
    ids = torch.randint(0, 4096, (batch, context))
    forwards = max(1, round(tokens / (batch * context)))
    with torch.no_grad(), cost() as found:
        for _ in range(forwards):
            model(input_ids=ids, use_cache=False)
    share = tokens / (forwards * batch * context)
    return Cost(found[0].wall * share, found[0].cpu * share)


def harvest_cost(config: HarvestConfig, out: Path) -> tuple[Cost, HarvestResult]:
    """Cost of the part of a harvest that grows with its length, without loading and the final shuffle."""
    costs: list[Cost] = []
    whole = HarvestJob._read

    def measured(*arguments: Any) -> None:
        with cost() as found:
            whole(*arguments)
        costs.extend(found)

    HarvestJob._read = measured
    try:
        result = runner.run(config, out)
    finally:
        HarvestJob._read = whole
    return costs[0], result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer tokens")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, help="tokens per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    size = (
        {"width": 256, "layers": 4, "heads": 4}
        if arguments.quick
        else {"width": 768, "layers": 12, "heads": 12}
    )
    tokens = arguments.tokens or (30_000 if arguments.quick else 20_000)
    block = size["layers"] // 2
    hook = f"resid_post.{block}"

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", context=arguments.context, **size)
        loaded = LanguageModel.load(str(folder / "model"), dtype=arguments.dtype, device="cpu")
        batch = choose_batch_size(loaded, [hook], arguments.context)
        bare = loaded.model.base_model
        bare.h = bare.h[: block + 1]
        bare.ln_f = torch.nn.Identity()
        values = {
            "model": {"name": str(folder / "model"), "dtype": arguments.dtype},
            "text": {"kind": "files", "paths": write_text(folder / "text")},
            "tokens": {"context": arguments.context},
            "hooks": [hook],
            "num_tokens": tokens,
            "batch_size": batch,
            "device": "cpu",
        }
        config = HarvestConfig.model_validate(values)
        shapes = sorted({batch, cpu_block(arguments.context)})
        bare_cost(bare, tokens // 8, shapes[0], arguments.context)  # warm
        costs: dict[str, list[Cost]] = {"bare": [], "harvest": [], "with the shuffle": []}
        for turn in range(arguments.turns):
            by_shape = [bare_cost(bare, tokens, shape, arguments.context) for shape in shapes]
            costs["bare"].append(Cost(min(c.wall for c in by_shape), min(c.cpu for c in by_shape)))
            harvest, result = harvest_cost(config, folder / f"cache-{turn}")
            share = tokens / result.manifest.counts["tokens"]
            costs["harvest"].append(Cost(harvest.wall * share, harvest.cpu * share))
            shuffled = (harvest.wall + result.shuffle_seconds) * share
            costs["with the shuffle"].append(Cost(shuffled, 0.0))

    walls = {what: statistics.median(c.wall for c in found) for what, found in costs.items()}
    ratio = walls["bare"] / walls["harvest"]
    cpu_ratio = statistics.median(
        bare.cpu / harvest.cpu for bare, harvest in zip(costs["bare"], costs["harvest"], strict=True)
    )
    facts = {
        "model": size,
        "hook": hook,
        "dtype": arguments.dtype,
        "context": arguments.context,
        "batch_sequences": batch,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "tokens_per_second": {what: round(tokens / wall, 1) for what, wall in walls.items()},
        "harvest / bare": round(ratio, 3),
        "with the shuffle / bare": round(walls["bare"] / walls["with the shuffle"], 3),
        "processor time, bare / harvest": round(cpu_ratio, 3),
        "target": TARGET,
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for what, wall in walls.items():
        print(f"{what:18} {tokens / wall:10,.0f} tokens/s   {walls['bare'] / wall:.3f} of bare")
    print(f"processor time of the bare forward / of the harvest = {cpu_ratio:.3f}")
    print(f"harvest / bare = {ratio:.3f} (target {TARGET})")


if __name__ == "__main__":
    main()
