"""Evaluations of several processes, forked from one that has imported everything.

Each process writes the results that it got, and how much of the work it did itself.
"""

import json
import os
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from saecache.evaluate.probing.labelled import LabelledTexts

from ..evaluate.conftest import Output, TinyModel
from ..evaluate.probing.test_absorption import SpellingModel, letter_sae, made_up_words
from .harvesting import environment_of
from .processes import SECONDS, free_port

SMALL = {"rows_per_block": 64, "logit_bytes": 50_000, "show_progress": False}
CASES: dict[str, dict[str, Any]] = {
    "one": {"saes": ["topk_k4"], "training_rows": 200, "overlap_latents": 40, "codes_on_disk": 3000},
    "batches": {"saes": ["batch_topk_k6"], "rule": "batch", "batch_rows": 50},
    "several": {"saes": ["topk_k4", "batch_topk_k6", "crosscoder", "raw_k4", "skipping"]},
}
"""What is measured, by name: SAEs of the folder of runs, and settings."""


def labelled() -> LabelledTexts:
    """Texts of two words that begin with the letter that is their class."""
    texts = {
        letter: [a + b for a in words[::2] for b in words[1::2]]
        for letter, words in ((one, made_up_words()[15 * i : 15 * i + 15]) for i, one in enumerate("abc"))
    }
    return LabelledTexts(
        "letters",
        {letter: found[:40] for letter, found in texts.items()},
        {letter: found[40:] for letter, found in texts.items()},
    )


def evaluate_with(
    processes: ForkServerContext, size: int, cache: Path, saes: Path, out: Path
) -> list[dict[str, Any]]:
    """Let ``size`` processes measure all :data:`CASES` and probe; return what each has written."""
    out.mkdir()
    port = free_port()
    started = [
        processes.Process(target=_work, args=(rank, size, port, cache, saes, out)) for rank in range(size)
    ]
    for process in started:
        process.start()
    for rank, process in enumerate(started):
        process.join(SECONDS)
        said = (out / f"{rank}.txt").read_text()
        assert process.exitcode == 0, f"process {rank} ended with {process.exitcode}: {said[-3000:]}"
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]


def _work(rank: int, size: int, port: int, cache: Path, saes: Path, out: Path) -> None:
    with (out / f"{rank}.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ.update(environment_of(rank, size, port))
    import torch

    from saecache.distributed import join_world, world
    from saecache.evaluate import measure
    from saecache.evaluate.probing import absorption, letter_probes, sparse_probing, texts
    from saecache.evaluate.probing.config import ProbingConfig
    from saecache.evaluate.probing.letters import make_letter_words
    from saecache.evaluate.probing.sparse_probing import probe_labelled
    from saecache.evaluate.runner import run
    from saecache.store import open_cache
    from saecache.train.sae import SAE

    torch.set_num_threads(1)
    done: Counter[str] = Counter()
    encode, fit = SAE.encode_sparse, sparse_probing._accuracy

    def count_rows(self: SAE, x: torch.Tensor, **options: Any) -> Any:
        done["rows"] += len(x)
        return encode(self, x, **options)

    def count_probes(*arguments: Any) -> Any:
        done["probes"] += 1
        return fit(*arguments)

    SAE.encode_sparse = count_rows  # type: ignore[method-assign]
    sparse_probing._accuracy = count_probes
    texts._BATCH_TOKENS = 300  # several batches
    measure._MORE_ROWS = 50
    absorption._WORDS_AT_ONCE = 50
    letter_probes.BATCH_WORDS = 16  # so that few words give as many steps as a vocabulary
    model, opened = TinyModel(), open_cache(cache)
    unembedding = Output(torch.randn(50, 16, generator=torch.Generator().manual_seed(7)))
    found: dict[str, Any] = {}
    with join_world():
        for name, case in CASES.items():
            settings = SMALL | {key: value for key, value in case.items() if key != "saes"}
            targets = [saes / sae for sae in case["saes"]]
            done.clear(), model.calls.clear()
            results = run(
                targets, opened, model=model, unembedding=unembedding, out=out / f"{name}.json", **settings
            )
            done["sequences"] = sum(n for _, n in model.calls)
            found[name] = {"results": results.model_dump(mode="json"), "done": dict(done)}
        done.clear()
        model_of_words, saes_of_words = SpellingModel(), {"a": letter_sae(True), "b": letter_sae(False)}
        reader, group = model_of_words.reader(), world().everyone
        shared = {"group": group, "show_progress": False}
        probed = probe_labelled(reader, saes_of_words, labelled(), ProbingConfig(ks=(1, 3)), 0, **shared)
        absorbed = absorption.measure_absorption(
            reader, saes_of_words, make_letter_words(reader, 0), 0, **shared
        )
        assert all(one.refused is None for one in absorbed.values())
        found["texts"] = {
            "results": [
                {name: one.model_dump(mode="json") for name, one in results.items()}
                for results in (probed, absorbed)
            ],
            "done": dict(done),
        }
    (out / f"{rank}.json").write_text(json.dumps(found))
