"""Whether latents of every kind absorb first letters (SAEBench's metric), on words of the model's vocabulary.

    python benchmarks/papers/absorption.py --cache CACHE --runs runs/papers/medium --form medium

Each word stands in a prompt with ten answered examples; ``saecache evaluate`` measures the same on all words
of the vocabulary. The model reads the prompts once: what it gives is kept beside the runs. The SAEs are those
of the table of every kind.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from forms import FORMS
from probing import every_sae
from run import is_measured, parser
from safetensors.torch import load_file, save
from torch import Tensor

from saecache import open_cache
from saecache.distributed.group import ALONE, Group
from saecache.evaluate.probing.absorption import measure_absorption
from saecache.evaluate.probing.letters import LetterWords, make_letter_words
from saecache.evaluate.probing.texts import TextReader
from saecache.harvest import load_model_of
from saecache.pipeline import text_reader
from saecache.store.durable import write_bytes

WORDS = 6000  # at most; a prompt has about 75 tokens
SEED = 0
FIGURES = ("absorption_fraction", "full_absorption", "main_latents")


@dataclass(frozen=True)
class SomeWords(LetterWords):
    """Words whose activations are kept in ``file``, so that the model is asked once."""

    file: Path

    def read(self, reader: TextReader, hooks: Sequence[str], group: Group = ALONE) -> dict[str, Tensor]:
        """As :meth:`LetterWords.read`."""
        found = load_file(self.file) if self.file.exists() else {}
        if any(hook not in found or len(found[hook]) != len(self.words) for hook in hooks):
            found = super().read(reader, hooks, group)
            write_bytes(self.file, save(found))
        return found


def some_of(words: LetterWords, file: Path) -> SomeWords:
    """At most :data:`WORDS` of them, drawn by a fixed seed, of which the same share is for testing."""
    kept = np.sort(np.random.default_rng(SEED).permutation(len(words.words))[:WORDS])
    return SomeWords(
        words=[words.words[i] for i in kept],
        letter=words.letter[kept],
        is_test=words.is_test[kept],
        sequences=[words.sequences[i] for i in kept],
        position=words.position[kept],
        file=file,
    )


def main() -> None:
    settings = parser(__doc__).parse_args()
    results, form = settings.results / settings.form, FORMS[settings.form]
    file = results / "absorption.json"
    if is_measured(file):
        return
    cache = open_cache(settings.cache)
    reader = text_reader(load_model_of(cache), cache)
    words = some_of(make_letter_words(reader, SEED), settings.runs / f"words-{WORDS}.safetensors")
    saes = every_sae(results, settings.runs)
    name, first = next(saes)
    found = measure_absorption(reader, {name: first}, words, SEED)
    if found[name].refused is None:  # which depends on the model alone
        found |= measure_absorption(reader, dict(saes), words, SEED)
    arms: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, one in found.items():
        if one.refused is None:
            for figure in FIGURES:
                arms[name.rpartition("_seed")[0]][figure].append(round(getattr(one, figure), 4))
    one = next(iter(found.values()))
    content = {
        "hook": form.hook,
        "words": one.num_words,
        "test_words": int(words.is_test.sum()),
        "refused": one.refused,
        "letters": {
            letter.letter: {"probe_f1": round(letter.probe_f1, 4), "words": letter.true_positives}
            for letter in one.letters
        },
        "figures": arms,
    }
    write_bytes(file, (json.dumps({"absorption": content}, indent=1) + "\n").encode())
    print(f"absorption: {file}")


if __name__ == "__main__":
    main()
