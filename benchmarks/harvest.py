"""Harvest tokens per second against the bare truncated forward, at the same dtype and batch.

    python benchmarks/harvest.py            # GPT-2 small's size, random weights
    python benchmarks/harvest.py --quick    # a smaller model, under a minute

Both take turns in one process. "Harvest" is reading and tokenizing text, the forward, selection,
normalization and writing with its commits; "with the shuffle" adds the final shuffled arrays, which a
harvest writes once at its end. The bare forward is the base model cut after the hook's block, on ready
token ids, in the better of two shapes: the batch, and the harvest's inner block. The ratio can be above 1,
since a harvest's forwards have the shape that is fastest on a processor.
"""

import json
import tempfile
from pathlib import Path

import torch
from shared.measuring import Report, parser, ratios

from saecache.doctor.measurements.harvest import bare_seconds, cut_after, make_gpt2
from saecache.harvest import HarvestConfig
from saecache.harvest import run as harvest
from saecache.harvest.builtin.stdlib_text import stdlib_documents
from saecache.harvest.model.forward import choose_batch_size, cpu_block
from saecache.harvest.model.language_model import LanguageModel

CPU = torch.device("cpu")


def write_text(folder: Path) -> str:
    """The standard library as JSON lines: reading it from there costs what reading a dataset costs."""
    folder.mkdir()
    with (folder / "text.jsonl").open("w") as file:
        for name, text in stdlib_documents():
            file.write(json.dumps({"name": name, "text": text}) + "\n")
    return str(folder)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--context", type=int, default=128)
    options.add_argument("--tokens", type=int, help="tokens per round")
    options.add_argument("--rounds", type=int, default=3)
    settings = options.parse_args()
    size = (
        {"width": 256, "layers": 4, "heads": 4}
        if settings.quick
        else {"width": 768, "layers": 12, "heads": 12}
    )
    tokens = settings.tokens or (30_000 if settings.quick else 20_000)
    block = size["layers"] // 2
    hook = f"resid_post.{block}"

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_gpt2(folder / "model", context=settings.context, **size)
        loaded = LanguageModel.load(str(folder / "model"), dtype=settings.dtype, device="cpu")
        batch = choose_batch_size(loaded, [hook], settings.context)
        words = f"GPT-2 of width {size['width']} with {size['layers']} layers, {hook}, {settings.dtype}"
        report = Report(
            "harvest",
            settings,
            f"{words}, {tokens:,} tokens in batches of [{batch}, {settings.context}], "
            f"{torch.get_num_threads()} threads",
        )
        bare = cut_after(loaded.model.base_model, block)
        config = HarvestConfig.model_validate(
            {
                "model": {"name": str(folder / "model"), "dtype": settings.dtype},
                "text": {"kind": "files", "paths": write_text(folder / "text")},
                "tokens": {"context": settings.context},
                "hooks": [hook],
                "num_tokens": tokens,
                "batch_size": batch,
                "device": "cpu",
            }
        )
        shapes = sorted({batch, cpu_block(settings.context)})
        bare_seconds(bare, tokens // 8, shapes[0], CPU, settings.context)  # warm
        seconds: dict[str, list[float]] = {"bare forward": [], "harvest": [], "harvest with the shuffle": []}
        for number in range(settings.rounds):
            by_shape = [bare_seconds(bare, tokens, shape, CPU, settings.context) for shape in shapes]
            seconds["bare forward"].append(min(by_shape))
            result = harvest(config, folder / f"cache-{number}")
            share = tokens / result.manifest.counts["tokens"]
            seconds["harvest"].append(result.harvest_seconds * share)
            shuffled = result.harvest_seconds + result.shuffle_seconds
            seconds["harvest with the shuffle"].append(shuffled * share)
        for what, taken in seconds.items():
            report.add(what, (tokens / time for time in taken), "tokens/s", "speed")
        bare_times = seconds.pop("bare forward")
        for what, taken in seconds.items():
            report.add(f"{what} / bare forward", ratios(bare_times, taken), group="ratio of speeds")
    report.save()


if __name__ == "__main__":
    main()
