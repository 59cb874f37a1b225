"""The first-letter task of SAEBench's ``absorption``: words of the vocabulary in prompts, and their
activations.

Legend: n words, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...common.errors import UsageError
from ...distributed.group import ALONE, Group
from .texts import Ids, TextReader, gather_arrays, read_positions

LETTERS = "abcdefghijklmnopqrstuvwxyz"
QUESTION = " has the first letter:"
NUM_EXAMPLES = 10
TRAIN_SHARE = 0.8
MIN_WORDS = 300


@dataclass(frozen=True)
class LetterWords:
    """Words of the vocabulary in prompts, a token each.

    Attributes:
        words: as the tokenizer has them, with a leading space where there is one.
        letter: the first letter, int64 [n], an index into :data:`LETTERS`.
        is_test: bool [n], words that no probe was trained on.
        sequences: token ids of each prompt; ``position`` int64 [n] is the word's place in it.
    """

    words: list[str]
    letter: np.ndarray
    is_test: np.ndarray
    sequences: list[Ids]
    position: np.ndarray

    def read(self, reader: TextReader, hooks: Sequence[str], group: Group = ALONE) -> dict[str, Tensor]:
        """The activation at the word of each prompt: float32 [n, D] of each hook, on the CPU.

        The processes of ``group`` share the prompts, and all get all activations.
        """
        wanted = [np.asarray([place]) for place in self.position]
        read: dict[str, list[np.ndarray]] = {hook: [] for hook in hooks}
        words = [np.zeros(0, dtype=np.int64)]
        with group.together():
            for activations, word_m in read_positions(reader, hooks, self.sequences, wanted, group):
                words.append(word_m)
                for hook, x_mD in activations.items():
                    read[hook].append(x_mD.cpu().numpy())
        word_n = np.concatenate(gather_arrays(group, np.concatenate(words)))
        found = {}
        for hook, parts in read.items():
            width = max(group.gather_values(parts[0].shape[1] if parts else 0))
            own = np.concatenate([np.zeros((0, width), np.float32), *parts])
            x_nD = np.concatenate(gather_arrays(group, own))
            found[hook] = torch.empty(x_nD.shape).index_copy_(
                0, torch.from_numpy(word_n), torch.from_numpy(x_nD)
            )
        return found


def make_letter_words(reader: TextReader, seed: int) -> LetterWords:
    """Put every alphabetic token of the vocabulary into a prompt with ten answered examples of its own split.

    A prompt is ``word has the first letter: W`` for each example, and the question for the word. It is read
    at the word, the sixth token from the end for most tokenizers; a word that is not one token there is left
    out.

    Raises:
        UsageError: fewer than :data:`MIN_WORDS` words, or prompts that are longer than the model's positions.
    """
    vocabulary = {text: token for token, text in reader.vocabulary() if _is_word(text)}
    random = np.random.default_rng(seed)
    ordered = sorted(vocabulary)
    words = [ordered[i] for i in random.permutation(len(ordered))]
    cut = int(len(words) * TRAIN_SHARE)
    if len(words) < MIN_WORDS:
        raise UsageError(
            f"absorption needs at least {MIN_WORDS} alphabetic tokens in the model's vocabulary, got "
            f"{len(words)}"
        )
    prompts = [_prompt(word, words[:cut] if i < cut else words[cut:], random) for i, word in enumerate(words)]
    sequences = reader.encode(prompts)
    tail = len(reader.tokenize([QUESTION])[0])
    kept = [
        i
        for i, (word, ids) in enumerate(zip(words, sequences, strict=True))
        if len(ids) > tail and ids[-tail - 1] == vocabulary[word]
    ]
    longest = max((len(sequences[i]) for i in kept), default=0)
    if reader.max_positions is not None and longest > reader.max_positions:
        raise UsageError(
            f"absorption: prompts have up to {longest} tokens, and the model has {reader.max_positions} "
            "positions"
        )
    if len(kept) < MIN_WORDS:
        raise UsageError(
            f"absorption: only {len(kept)} of {len(words)} words stay one token before {QUESTION!r}, "
            f"expected at least {MIN_WORDS}: this tokenizer does not suit the task"
        )
    return LetterWords(
        words=[words[i] for i in kept],
        letter=np.asarray([LETTERS.index(words[i].strip()[0].lower()) for i in kept]),
        is_test=np.asarray([i >= cut for i in kept]),
        sequences=[sequences[i] for i in kept],
        position=np.asarray([len(sequences[i]) - tail - 1 for i in kept]),
    )


def _is_word(text: str) -> bool:
    letters = text.removeprefix(" ")
    return bool(letters) and letters.isascii() and letters.isalpha()


def _prompt(word: str, examples: Sequence[str], random: np.random.Generator) -> str:
    chosen = [examples[i] for i in random.choice(len(examples), NUM_EXAMPLES + 1, replace=False)]
    others = [example for example in chosen if example != word][:NUM_EXAMPLES]
    lines = [f"{example}{QUESTION} {example.strip()[0].upper()}" for example in others]
    return "\n" + "\n".join([*lines, f"{word}{QUESTION}"])
