"""What the judge reads: the text of windows, highlights, and prompts in files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saecache.common.errors import UsageError
from saecache.evaluate.judge.activations import LatentActivations, Places
from saecache.evaluate.judge.config import InterpretConfig
from saecache.evaluate.judge.cost import load_counter
from saecache.evaluate.judge.prompts import NAMES, Prompts
from saecache.evaluate.judge.window_text import Example, WindowReader, _highlight, split_text
from saecache.evaluate.judge.windows import Windows
from saecache.harvest import LanguageModel

from .conftest import WORDS, decode


def bytes_decoder(ids: list[int]) -> str:
    """As a byte-level tokenizer: a part of a character is a replacement character."""
    return bytes(ids).decode("utf-8", "replace")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=20))
def test_pieces_are_the_text_whatever_tokens_share_a_character(text: str) -> None:
    ids = list(text.encode())
    pieces = split_text(ids, bytes_decoder)
    assert len(pieces) == len(ids) and "".join(pieces) == text


def test_pieces_keep_spaces_that_single_tokens_lose() -> None:
    """As SentencePiece: the space before a word that begins a text is dropped."""
    words = ["▁a", "b", "▁c"]

    def sentencepiece(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert split_text([0, 1, 2, 0], sentencepiece) == ["a", "b", " c", " a"]


@pytest.fixture(scope="module")
def tokenizer():
    return LanguageModel.load("builtin:demo", device="cpu").tokenizer


@pytest.mark.parametrize("text", ["def f(x):\n    return '€' + x", "naïve 日本語 🙂 text", "a >> b << c"])
def test_pieces_of_a_real_tokenizer(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(split_text(ids, lambda some: tokenizer.decode(some))) == text


@pytest.mark.parametrize(
    ("pieces", "marked", "text"),
    [
        ([" the", " cat", " sat"], [0, 1, 0], " the <<cat>> sat"),
        ([" the", " cat", " sat"], [0, 1, 1], " the <<cat sat>>"),
        (["un", "believ", "able"], [0, 1, 0], "un<<believ>>able"),
        (["a", "\n\n", "b"], [0, 1, 0], "a<<\n\n>>b"),
        (["a", "", "b"], [0, 1, 0], "ab"),
        (["x", " <<", " y"], [1, 0, 1], "<<x>> < < <<y>>"),
        ([">", ">"], [0, 0], "> >"),
        ([], [], ""),
    ],
)  # fmt: skip
def test_highlights(pieces: list[str], marked: list[int], text: str) -> None:
    assert _highlight(pieces, np.asarray(marked, dtype=bool)) == text


def test_a_window_as_the_judge_sees_it(word_cache, places: Places, windows: Windows) -> None:
    reader = WindowReader(word_cache, places, windows, decode)
    window = 17
    rows = np.flatnonzero(windows.of_place == window)
    column = LatentActivations(rows=rows[[1, 4]], values=np.asarray([-0.5, 2.0], dtype=np.float32))
    strength = reader.activations(column, window)
    assert np.flatnonzero(strength).tolist() == [1, 4] and strength[4] == 2 and strength[1] == 0.5
    example = reader.read(window, strength > 0, strength, 4.0)
    ids = word_cache.tokens[windows.sequence[window]][windows.start[window] : windows.stop[window]]
    words = [WORDS[i] for i in ids]
    assert example.text == " " + " ".join(words)
    marked = [f"<<{word}>>" if i in (1, 4) else word for i, word in enumerate(words)]
    assert example.highlighted == " " + " ".join(marked)
    assert example.tokens == [(f" {words[4]}", 5), (f" {words[1]}", 1)]


EXAMPLES = [
    Example(text=" a\n\tb", highlighted=" <<a>>\n\tb", tokens=[(" a", 7)]),
    Example(text="c", highlighted="c", tokens=[]),
]


def test_shipped_prompts_hold_what_they_should() -> None:
    prompts = Prompts()
    system, user = prompts.explain(EXAMPLES)
    assert (system["role"], user["role"]) == ("system", "user")
    assert "EXPLANATION:" in system["content"]
    assert user["content"] == 'Excerpt 1:  <<a>>\\n\\tb\nStrengths: " a" 7\nExcerpt 2: c'
    system, user = prompts.detection("words", EXAMPLES)
    assert "2 excerpts" in system["content"] and "[1, 0]" in system["content"]
    assert user["content"] == "Explanation: words\n\nExcerpt 1:  a\\n\\tb\nExcerpt 2: c"
    assert "<<" not in user["content"]
    assert "<<a>>" in prompts.fuzzing("words", EXAMPLES)[1]["content"]
    assert "2 numbers" in prompts.repair_score(EXAMPLES)


def test_prompts_of_a_folder_replace_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "explain.user.j2").write_text("{% for e in examples %}{{ e.text | trim }};{% endfor %}")
    mine = Prompts(tmp_path)
    assert mine.explain(EXAMPLES[1:])[1]["content"] == "c;"
    assert mine.explain(EXAMPLES)[0] == Prompts().explain(EXAMPLES)[0]
    assert mine.sha256 != Prompts().sha256 == Prompts().sha256


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("explain.j2", "x", r"explain.j2 is no prompt that is used \(did you mean.*known names: explain"),
        ("fuzzing.user.j2", "{{ exmples }}", "fuzzing.user.j2 cannot be used: 'exmples' is undefined"),
        ("fuzzing.user.j2", "{% for %}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{{ 1 / 0 }}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{{ examples.__class__.__mro__ }}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{% include '/etc/passwd' %}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{% include 'fuzzing.user.j2' %}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{% import 'fuzzing.user.j2' as x %}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{% extends 'fuzzing.user.j2' %}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "user.j2 cannot be used"),
        ("fuzzing.user.j2", "{% for a in [1] %}" * 100 + "{% endfor %}" * 100, "user.j2 cannot be used"),
        ("fuzzing.user.j2", "{{ " + "(" * 20_000 + ")" * 20_000 + " }}", "user.j2 cannot be used"),
        ("fuzzing.user.j2", "{{ '\\ud800' }}", "fuzzing.user.j2 cannot be used"),
        ("fuzzing.user.j2", "{{ " + "x" * 10**6 + " }}", "fuzzing.user.j2 cannot be used"),
    ],
)  # fmt: skip
def test_bad_prompts_are_refused_before_work(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        Prompts(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_folder_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        Prompts(tmp_path / "none")
    with pytest.raises(UsageError, match=r"holds no template; expected explain.system.j2"):
        Prompts(tmp_path)
    (tmp_path / NAMES[0]).write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        Prompts(tmp_path)


def test_tokens_are_counted_by_bytes_or_by_a_tokenizer(tmp_path: Path, tokenizer) -> None:
    count, words = load_counter(None)
    assert (count(""), count("abcd"), count("abcde"), count("€€")) == (0, 1, 2, 2)
    assert words == "counted as one for 4 bytes"
    tokenizer.save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        count, words = load_counter(str(place))
        text = "def f(x): return x"
        assert count(text) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert str(place) in words
    (tmp_path / "bad.json").write_text("{}")
    for place, message in (
        (tmp_path / "none", "there is no file"),
        (tmp_path / ("x" * 5000), "there is no file"),
        (tmp_path / "a\0b", "there is no file"),
        (tmp_path / "bad.json", "is no tokenizer.json"),
    ):
        with pytest.raises(UsageError, match=message):
            load_counter(str(place))


def test_a_tokenizer_that_fails_is_told_in_words(tmp_path: Path) -> None:
    place = tmp_path / "tokenizer.json"
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    place.write_text(json.dumps({"version": "1.0", "model": words}))
    count, _ = load_counter(str(place))
    with pytest.raises(UsageError, match=r"tokenizer=.*tokenizer.json cannot read 'b'"):
        count("b")
    pairs = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    place.write_text(json.dumps({"version": "1.0", "model": pairs | {"continuing_subword_prefix": "#" * 99}}))
    with pytest.raises(UsageError, match=r"tokenizer=.*tokenizer.json (cannot read|is no tokenizer.json)"):
        load_counter(str(place))[0]("ab")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"detection": False, "fuzzing": "none", "calibration": None}, "all off"),
        ({"windows": {"score": 25}}, "multiple of 10"),
        ({"endpoint": {"adress": "x"}}, "adress"),
        ({"embeddings": {"kind": "folder"}}, "path"),
        ({"price": {"prompt_per_million": -1, "completion_per_million": 1}}, "prompt_per_million"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InterpretConfig.model_validate(values)
