"""Encoding in batches, and the special tokens by role."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.harvest.text.config import TokensConfig
from saecache.harvest.text.sources import Document
from saecache.harvest.text.tokenizing import encode, packing_rule, tokenized

from ..model.test_tokenizer import tokenizer_in


@pytest.fixture(scope="module")
def neox_tokenizer(model_folder: Callable[[str], Path]):
    return tokenizer_in(model_folder("neox"))


def tokens(**settings: object) -> TokensConfig:
    return TokensConfig.model_validate({"context": 8, **settings})


def test_batches_are_what_one_text_at_a_time_gives(neox_tokenizer) -> None:
    texts = ["", "a quick brown fox", "x" * 300_000, *(f"number {i}" for i in range(600))]
    documents = (Document(i + 5, text) for i, text in enumerate(texts))
    found = list(tokenized(documents, neox_tokenizer))
    assert [d.number for d in found] == list(range(5, 5 + len(texts)))
    for document, text in zip(found, texts, strict=True):
        expected = neox_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        assert document.ids.tolist() == expected
        assert document.ids.dtype == np.int32


def test_a_tokenizer_without_a_fast_backend_works_too(neox_tokenizer) -> None:
    calls = []

    class Slow:
        def __call__(self, texts: list[str], **settings: object) -> dict[str, list[list[int]]]:
            calls.append(settings)
            return {"input_ids": [[len(text)] for text in texts]}

    assert [ids.tolist() for ids in encode(Slow(), ["ab", ""])] == [[2], [0]]
    assert calls[0]["add_special_tokens"] is False


def test_an_error_of_the_source_comes_in_its_turn(neox_tokenizer) -> None:
    def documents():
        yield Document(0, "one")
        yield Document(1, "two")
        raise UsageError("line 3 is bad")

    found = tokenized(documents(), neox_tokenizer)
    assert [next(found).number, next(found).number] == [0, 1]
    with pytest.raises(UsageError, match="line 3 is bad"):
        next(found)


def test_bos_and_separator_by_policy(model_folder: Callable[[str], Path], neox_tokenizer) -> None:
    llama = tokenizer_in(model_folder("llama"))
    qwen = tokenizer_in(model_folder("qwen3"))
    assert packing_rule(tokens(), neox_tokenizer).bos_id == neox_tokenizer.bos_token_id
    assert packing_rule(tokens(), neox_tokenizer).separator_id == neox_tokenizer.eos_token_id
    assert packing_rule(tokens(), llama).bos_id == llama.bos_token_id != llama.eos_token_id
    assert packing_rule(tokens(separator="bos"), llama).separator_id == llama.bos_token_id
    assert packing_rule(tokens(bos="never"), llama).bos_id is None
    assert packing_rule(tokens(), qwen).bos_id is None
    assert packing_rule(tokens(separator="<|endoftext|>"), qwen).separator_id == qwen.pad_token_id
    assert packing_rule(tokens(separator="none"), qwen).separator_id is None
    assert packing_rule(tokens(packing="per_document"), neox_tokenizer).separator_id is None


def test_tokens_that_are_not_there(model_folder: Callable[[str], Path], neox_tokenizer) -> None:
    qwen = tokenizer_in(model_folder("qwen3"))
    with pytest.raises(UsageError, match="no BOS token"):
        packing_rule(tokens(bos="always"), qwen)
    with pytest.raises(UsageError, match="no BOS token"):
        packing_rule(tokens(separator="bos"), qwen)
    with pytest.raises(UsageError, match="'<nothing>' is not a token"):
        packing_rule(tokens(separator="<nothing>"), qwen)
    with pytest.raises(UsageError, match="at least 2"):
        packing_rule(tokens(context=1), neox_tokenizer)
