"""The tokenizer's identity, what its tokens look like, and a model that has none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from saecache.common.errors import UsageError
from saecache.harvest.model.files import ModelFiles
from saecache.harvest.model.tokenizer import load_tokenizer, show_token, tokenizer_sha256
from saecache.harvest.text.tokenizing import encode


@pytest.fixture(scope="module")
def neox_tokenizer(model_folder: Callable[[str], Path]):
    return tokenizer_in(model_folder("neox"))


def files_in(folder: Path) -> ModelFiles:
    return ModelFiles(name=folder.name, folder=folder, revision=None, from_hub=False)


def tokenizer_in(folder: Path):
    return load_tokenizer(files_in(folder))


def test_tokens_are_shown_with_the_bytes_of_parts_of_characters(neox_tokenizer) -> None:
    ids = encode(neox_tokenizer, ["plain \u2020 text \U0001f9ee"])[0].tolist()
    shown = [show_token(neox_tokenizer, number) for number in ids]
    assert "\ufffd" not in "".join(shown)
    found = "".join(shown).encode("latin-1", "backslashreplace").decode("unicode_escape")
    assert found.encode("latin-1").decode("utf-8") == "plain \u2020 text \U0001f9ee"
    assert any("\\xf0" in text for text in shown)


def test_tokens_of_other_vocabularies_are_shown() -> None:
    class Pieces:
        """As SentencePiece: no space at the beginning, and the replacement character for a part of one."""

        names = ("<0xE2>", "\ufffd", "\u4e2d\ufffd", "▁word", "word", "▁▁", "▁▁▁▁word")

        def decode(self, ids: list[int]) -> str:
            name = self.names[ids[0]]
            return name.lstrip("▁") if "word" in name or "▁" in name else "\ufffd"

        def convert_ids_to_tokens(self, number: int) -> str:
            return self.names[number]

    shown = [show_token(Pieces(), number) for number in range(7)]
    assert shown == ["\\xe2", "\ufffd", "\ufffd", " word", "word", "  ", "    word"]


def test_identity_is_that_of_the_vocabulary(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model_folder("neox")
    tokenizer = tokenizer_in(folder)
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert tokenizer_sha256(files_in(copy), tokenizer) == tokenizer_sha256(files_in(folder), tokenizer)
    assert tokenizer_sha256(files_in(model_folder("llama")), tokenizer) != tokenizer_sha256(
        files_in(folder), tokenizer
    )
    bare = SimpleNamespace(get_vocab=lambda: {"b": 1, "a": 0})
    other = SimpleNamespace(get_vocab=lambda: {"a": 1, "b": 0})
    assert tokenizer_sha256(files_in(tmp_path), bare) != tokenizer_sha256(files_in(tmp_path), other)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no tokenizer"):
        tokenizer_in(tmp_path)
