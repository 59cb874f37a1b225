"""How much a few latents of every kind say about the text: k-sparse probes on passages of known origin.

    python benchmarks/papers/probing.py --cache CACHE --runs runs/papers/medium --form medium

The passages are parts of modules of Python's own standard library, so that no network is needed; their
label is the package they are from. A probe sees the mean of a passage's codes, and of these only the latents
whose means differ most (SAEBench's sparse probing, as ``saecache evaluate --probe`` does it). Beside it stand
probes of the model's own activations. The SAEs are those of the table of every kind.
"""

import json
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from arms import TUNED
from forms import FORMS
from run import is_measured, parser, read

from saecache import SAE, load_sae, open_cache
from saecache.evaluate.probing.config import ProbingConfig
from saecache.evaluate.probing.labelled import load_labelled
from saecache.evaluate.probing.sparse_probing import probe_labelled
from saecache.harvest import load_model_of
from saecache.pipeline import text_reader
from saecache.store.durable import write_bytes

PACKAGES = ("asyncio", "email", "multiprocessing", "unittest", "xml")
PASSAGES = 200  # of each package
CHARACTERS = 500  # at most, of a passage
KS = (1, 5, 20)


def passages(package: str) -> Iterator[str]:
    """Parts of the package's modules of about as many characters, at the ends of lines."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / package
    for file in sorted(folder.rglob("*.py")):
        if "test" in file.relative_to(folder).parts:
            continue
        passage = ""
        for line in file.read_text("utf-8", "replace").splitlines(keepends=True):
            if len(passage) + len(line) > CHARACTERS and passage.strip():
                yield passage
                passage = ""
            passage += line


def write_labelled(file: Path) -> None:
    """As many passages of each package, drawn by a fixed seed: JSON lines with ``text`` and ``label``."""
    random, lines = np.random.default_rng(0), []
    for package in PACKAGES:
        every = sorted(set(passages(package)))
        chosen = random.permutation(len(every))[:PASSAGES]
        lines += [json.dumps({"text": every[i], "label": package}) for i in chosen]
    write_bytes(file, ("\n".join(lines) + "\n").encode())


def folders_of(section: dict[str, Any], name: str, runs: Path) -> Iterator[tuple[str, Path]]:
    """Each SAE of a measured section and its folder, that of the training that ended last."""
    for arm in section["arms"]:
        for seed in section["arms"][arm]["seeds"]:
            sae = f"{arm}_seed{seed}"
            found = sorted(
                [*runs.glob(f"{name}/seed*/{sae}/sae"), *runs.glob(f"{name}-*/seed*/{sae}/sae")],
                key=lambda folder: (folder / "cfg.json").stat().st_mtime,
            )
            if not found:
                raise SystemExit(f"{sae} of {name} is not in {runs}: train it with run.py first")
            yield sae, found[-1]


def every_sae(results: Path, runs: Path) -> Iterator[tuple[str, SAE]]:
    """The SAEs of the table of every kind, with their names, which end with the seed."""
    for name in TUNED:
        if section := read(results, name):
            for sae, folder in folders_of(section, name, runs):
                yield sae, load_sae(folder)


def main() -> None:
    settings = parser(__doc__).parse_args()
    results, form = settings.results / settings.form, FORMS[settings.form]
    file = results / "probing.json"
    if is_measured(file):
        return
    cache = open_cache(settings.cache)
    saes = dict(every_sae(results, settings.runs))
    labelled = settings.runs / "labelled.jsonl"
    write_labelled(labelled)
    config = ProbingConfig(data=(str(labelled),), ks=KS)
    found = probe_labelled(
        text_reader(load_model_of(cache), cache),
        saes,
        load_labelled(str(labelled), config, 0),
        config,
        0,
        show_progress=False,
    )
    arms: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, probed in found.items():
        accuracy = {f"probe_{k}": one.accuracy for k, one in probed.sparse.items()}
        for figure, value in {**accuracy, "probe_all": probed.dense.accuracy}.items():
            arms[name.rpartition("_seed")[0]][figure].append(round(value, 4))
    one = next(iter(found.values()))
    content = {
        "hook": form.hook,
        "packages": list(PACKAGES),
        "train_texts": one.train_texts,
        "test_texts": one.test_texts,
        "context": config.context,
        "model": {
            **{f"probe_{k}": round(value.accuracy, 4) for k, value in one.model_sparse.items()},
            "probe_all": round(one.model_dense.accuracy, 4),
        },
        "figures": arms,
    }
    write_bytes(file, (json.dumps({"probing": content}, indent=1) + "\n").encode())
    print(f"probing: {file}")


if __name__ == "__main__":
    main()
