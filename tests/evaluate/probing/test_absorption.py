"""Absorption: planted where it is known, absent where there is none, refused where letters are not known."""

import re
from collections.abc import Sequence
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from torch import Tensor

from saecache.common.errors import UsageError
from saecache.evaluate.probing import absorption, letter_probes, letters
from saecache.evaluate.probing.absorption import (
    absorption_of_word,
    find_main_latents,
    measure_absorption,
    order_latents,
)
from saecache.evaluate.probing.letters import QUESTION, make_letter_words
from saecache.evaluate.probing.texts import TextReader

from .conftest import relu_sae

WIDTH, LETTER, TOPIC = 60, 26, 52  # the first dimension after the letters', and after the topics'
FILLER = ["\n", " has", " the", " first", " letter", ":", *(f" {c.upper()}" for c in ascii_lowercase)]


def made_up_words() -> list[str]:
    """15 words of each letter; every second one with a leading space."""
    return [
        f"{' ' * (i % 2)}{letter}{'xyz'[i // 5]}{'abcde'[i % 5]}"
        for letter in ascii_lowercase
        for i in range(15)
    ]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps for 336 words as SAEBench takes for 86,000."""
    monkeypatch.setattr(letter_probes, "BATCH_WORDS", 16)


class SpellingModel:
    """Letter l of a word is 3 in dimension l. A fifth of the words of each letter have a topic, dimension 26
    + l.
    """

    def __init__(self, knows_letters: bool = True) -> None:
        self.tokens = list(dict.fromkeys([*FILLER, *made_up_words()]))
        self.number = {token: i for i, token in enumerate(self.tokens)}
        random = torch.Generator().manual_seed(0)
        self.vectors = 0.2 * torch.randn(len(self.tokens), WIDTH, generator=random)
        self.vectors[:, :TOPIC] = 0
        self.topical = {word for i, word in enumerate(made_up_words()) if i % 5 == 3}
        for word in filter(str.strip, self.tokens):
            if word == ":":
                continue
            letter = ascii_lowercase.index(word.strip()[0].lower())
            self.vectors[self.number[word], letter if knows_letters else i_of(word)] = 3
            if word in self.topical:
                self.vectors[self.number[word], LETTER + letter] = 3

    def activations(self, ids: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        return dict.fromkeys(hooks, self.vectors[ids.clamp_min(0)])

    def reader(self, **options: int) -> TextReader:
        def tokenize(texts: list[str]) -> list[np.ndarray]:
            found = [re.findall(r"\n| ?[A-Za-z]+|:", text) for text in texts]
            return [np.asarray([self.number[token] for token in text], dtype=np.int64) for text in found]

        return TextReader(self, tokenize, None, lambda: list(enumerate(self.tokens)), **options)


def i_of(word: str) -> int:
    return sum(map(ord, word)) % LETTER


def letter_sae(absorbs: bool):
    """A latent for each letter and for each topic. If it absorbs, a topic's latent takes over from the
    letter's.
    """
    encoder, decoder = torch.zeros(2, TOPIC, WIDTH)
    for letter in range(LETTER):
        encoder[letter, letter] = encoder[LETTER + letter, LETTER + letter] = 1
        decoder[letter, letter] = decoder[LETTER + letter, LETTER + letter] = 1
        if absorbs:
            encoder[letter, LETTER + letter] = -1
            decoder[LETTER + letter, letter] = 1
    sae = relu_sae(encoder, "absorbing" if absorbs else "plain")
    sae.W_dec.copy_(decoder)
    return sae


def test_planted_absorption_is_found_and_none_elsewhere() -> None:
    model = SpellingModel()
    saes = {"absorbing": letter_sae(True), "plain": letter_sae(False)}
    words = make_letter_words(model.reader(), 0)
    found = measure_absorption(model.reader(), saes, words, 0, show_progress=False)
    plain, absorbing = found["plain"], found["absorbing"]
    assert plain.refused is None
    assert plain.absorption_fraction == plain.full_absorption == 0
    assert plain.main_latents == 1
    assert len(absorbing.letters) >= 20
    for result in (plain, absorbing):
        assert result.num_words == len(words.words)
        for letter in result.letters:
            assert letter.main_latents[0] == ascii_lowercase.index(letter.letter)
            assert letter.probe_f1 > 0.9
    expected = []
    for letter in absorbing.letters:
        here = words.is_test & (words.letter == ascii_lowercase.index(letter.letter))
        test = [words.words[i] for i in np.flatnonzero(here)]
        assert letter.true_positives == len(test)
        share = np.mean([word in model.topical for word in test])
        # Where a second main latent (the topic's) was taken, it carries the letter, and nothing is absorbed.
        expected.append(0 if len(letter.main_latents) > 1 else share)
        assert letter.full_absorption == pytest.approx(expected[-1])
        assert letter.absorption_fraction == pytest.approx(expected[-1])
    assert absorbing.full_absorption == pytest.approx(np.mean(expected))
    assert absorbing.main_latents == np.mean([len(letter.main_latents) for letter in absorbing.letters])


def test_absorption_where_no_main_latent_covers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one main latent at most, as many words are absorbed as have a topic."""
    monkeypatch.setattr(absorption, "F1_JUMP", 0.5)
    model = SpellingModel()
    words = make_letter_words(model.reader(), 1)
    found = measure_absorption(model.reader(), {"a": letter_sae(True)}, words, 1, show_progress=False)["a"]
    shares = []
    for letter in found.letters:
        here = words.is_test & (words.letter == ascii_lowercase.index(letter.letter))
        shares.append(np.mean([words.words[i] in model.topical for i in np.flatnonzero(here)]))
    assert found.full_absorption == pytest.approx(np.mean(shares))
    assert 0.1 < found.full_absorption < 0.3
    low, high = found.intervals["full_absorption"]
    assert low < found.full_absorption < high
    draws, random = [], np.random.default_rng(3)
    letter_of = dict(zip(words.words, words.letter, strict=True))
    measured = {ascii_lowercase.index(letter.letter) for letter in found.letters}
    test = [
        word
        for word, is_test in zip(words.words, words.is_test, strict=True)
        if is_test and letter_of[word] in measured
    ]
    for _ in range(1000):
        by_letter = {letter: [] for letter in measured}
        for i in random.integers(0, len(test), len(test)):
            by_letter[letter_of[test[i]]].append(test[i] in model.topical)
        draws.append(np.mean([np.mean(values) for values in by_letter.values() if values]))
    expected = np.quantile(draws, [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.15 * (expected[1] - expected[0]))


def test_a_model_that_does_not_know_letters_is_refused() -> None:
    model = SpellingModel(knows_letters=False)
    words = make_letter_words(model.reader(), 0)
    found = measure_absorption(model.reader(), {"a": letter_sae(True)}, words, 0, show_progress=False)["a"]
    assert found.refused is not None
    assert re.search(r"find \d+ letters with F1 above 0.6, expected at least 20", found.refused)
    assert found.absorption_fraction is None
    assert found.letters == []


COSINE = np.array([0.9, 0.5, 0.2, 0.05, 0.02, -0.3])


@pytest.mark.parametrize(
    ("codes", "projection", "fraction", "full"),
    [
        ([4, 0, 0, 0, 0, 0], 3.0, 0.0, False),  # the main latent carries it
        ([0, 6, 0, 0, 0, 0], 3.0, 1.0, True),  # another one carries it alone
        ([1, 4, 0, 0, 0, 0], 3.0, 2.0 / 2.9, False),  # 2 of 2.1 that the main latent leaves
        ([1, 9, 0, 0, 0, 0], 3.0, 2.1 / 3.0, False),  # no more than is left
        ([0, 2, 0, 0, 0, 0], 3.0, 0.0, False),  # a third is too little
        ([0, 2, 3, 0, 0, 0], 3.0, 1.0, False),  # two together, none of them alone
        ([0, 0, 0, 60, 0, 0], 3.0, 0.0, True),  # aligned enough for full absorption only
        ([0, 0, 0, 0, 99, 0], 3.0, 0.0, False),  # not aligned
        ([0, 0, 0, 0, 0, 9], 3.0, 0.0, False),  # against the letter
        ([0, 6, 0, 0, 0, 0], 0.0, 0.0, False),  # no letter to absorb
        ([0, 6, 0, 0, 0, 9], -1.0, 0.0, False),
    ],
)
def test_rules_of_one_word(codes: list[float], projection: float, fraction: float, full: bool) -> None:
    found = absorption_of_word(np.array(codes, dtype=float), projection, COSINE, np.array([0]))
    assert found == (pytest.approx(fraction), full)


def test_main_latents_are_taken_while_f1_rises() -> None:
    random = np.random.default_rng(0)
    y = random.random(800) < 0.3
    half = random.random(800) < 0.5
    codes = random.random((800, 6)) * (random.random((800, 6)) < 0.1)
    codes[:, 2] = 5 * (y & half)
    codes[:, 4] = 4 * (y & ~half)
    from scipy.sparse import csr_array

    train, test = csr_array(codes[:600]), csr_array(codes[600:])
    order = order_latents(train, np.where(y[:600], 4, 9), [4], seed=0)[4]
    main, f1 = find_main_latents(order, train, y[:600], test, y[600:])
    assert sorted(main) == [2, 4]
    assert f1 > 0.95


def test_prompts_ask_for_one_word_after_ten_answers() -> None:
    model = SpellingModel()
    words = make_letter_words(model.reader(), 0)
    assert set(made_up_words()) <= set(words.words)
    assert words.is_test.mean() == pytest.approx(0.2, abs=0.01)
    split = dict(zip(words.words, words.is_test, strict=True))
    for word, ids, place in list(zip(words.words, words.sequences, words.position, strict=True))[::50]:
        text = "".join(model.tokens[i] for i in ids)
        lines = text.split("\n")[1:]
        assert lines[-1] == f"{word}{QUESTION}"
        assert len(lines) == 11
        assert model.tokens[ids[place]] == word
        assert place == len(ids) - 6
        for line in lines[:-1]:
            example, answer = line.split(QUESTION)
            assert answer == f" {example.strip()[0].upper()}"
            assert example != word
            assert split[example] == split[word]


def test_what_the_task_needs_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"prompts have up to 87 tokens, and the model has 64 positions"):
        make_letter_words(SpellingModel().reader(max_positions=64), 0)
    monkeypatch.setattr(letters, "MIN_WORDS", 10_000)
    with pytest.raises(UsageError, match=r"at least 10000 alphabetic tokens"):
        make_letter_words(SpellingModel().reader(), 0)
