"""The embedded demo model loads by the plain classes, gives text back exactly, and has learned its text."""

import logging
import random
import re
import socket
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from saecache.harvest.builtin import DEMO_MODEL_PATH
from saecache.harvest.builtin.heldout import Loss, document_loss, total
from saecache.harvest.builtin.stdlib_text import is_heldout, stdlib_documents, stdlib_fingerprint

MAX_FOLDER_BYTES = 8 * 1024 * 1024
NUM_TEST_DOCUMENTS = 4
MAX_DOCUMENT_CHARACTERS = 20_000


@pytest.fixture(scope="module")
def loading_complaints() -> list[str]:
    """Filled with what transformers logs as a warning or worse while the fixtures below load the folder."""
    return []


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterator[None]:
    """Any connection fails: the demo has to load offline."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"loading the demo model opened a connection: {arguments[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A small model gains little from a second thread, and loses much when the other core is taken."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(loading_complaints: list[str]) -> PreTrainedModel:
    with _Complaints(loading_complaints):
        return AutoModelForCausalLM.from_pretrained(DEMO_MODEL_PATH).eval()


@pytest.fixture(scope="module")
def tokenizer(loading_complaints: list[str]) -> PreTrainedTokenizerFast:
    with _Complaints(loading_complaints):
        return AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)


class _Complaints(logging.Handler):
    """Collects what the transformers logger says at level warning or above."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("transformers").addHandler(self)

    def __exit__(self, *error: object) -> None:
        logging.getLogger("transformers").removeHandler(self)


def test_loads_by_the_plain_classes_without_a_warning(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, loading_complaints: list[str]
) -> None:
    assert loading_complaints == []
    assert model.config.model_type == "gpt_neox"
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == model.config.eos_token_id


def test_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in DEMO_MODEL_PATH.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_FOLDER_BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}


def _awkward_texts() -> list[str]:
    rng = random.Random(0)
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    return [
        "",
        " \t\r\n\x00  def f(x):\n\n        return x  \n",
        "Ünïcödé e\u0301 \u00e9 日本語 🙂\u200d ﬁ \ufeff",
        bytes(range(256)).decode("latin-1"),
        *("".join(rng.choices(characters, k=200)) for _ in range(20)),
    ]


@pytest.mark.parametrize("text", _awkward_texts(), ids=lambda text: f"{len(text)}_characters")
def test_tokenizer_gives_any_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id not in ids


def test_end_of_text_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("<|endoftext|>", add_special_tokens=False) == [tokenizer.eos_token_id]


def _card_losses() -> tuple[float, float]:
    """Nats per token of (model, unigram) over all held-out documents, as the card states them."""
    card = (DEMO_MODEL_PATH / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (model|unigram) \| ([\d.]+) \|", card)
    assert [name for name, _ in rows[:2]] == ["model", "unigram"]
    return float(rows[0][1]), float(rows[1][1])


def _heldout_texts() -> Iterator[str]:
    return (
        text for name, text in stdlib_documents() if is_heldout(name) and len(text) < MAX_DOCUMENT_CHARACTERS
    )


def test_heldout_loss_is_what_the_card_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    card_model, card_unigram = _card_losses()
    uniform = torch.full((len(tokenizer),), 1 / len(tokenizer)).log()
    losses: list[Loss] = [
        document_loss(model, tokenizer, text, uniform, context_tokens=model.config.max_position_embeddings)
        for text in islice(_heldout_texts(), NUM_TEST_DOCUMENTS)
    ]
    loss = total(losses).model_nats / total(losses).num_tokens
    assert card_model < card_unigram / 2
    assert loss < card_unigram / 2
    # A few documents stand for all, and another version of Python has other documents.
    assert loss == pytest.approx(card_model, rel=0.3)


def test_stdlib_documents_are_the_same_every_time() -> None:
    assert stdlib_fingerprint() == stdlib_fingerprint()
    names = [name for name, _ in stdlib_documents()]
    assert len(set(names)) == len(names) > 300
    assert 0.02 < sum(map(is_heldout, names)) / len(names) < 0.10


def test_stdlib_documents_are_source_and_documentation_in_an_order_that_mixes_them() -> None:
    documents = dict(stdlib_documents())
    assert documents["json/decoder.py"].startswith('"""Implementation of JSONDecoder')
    assert all(documents.values())
    assert not any("\r\n" in text for name, text in documents.items() if name.startswith("json/"))
    unwanted = re.compile(r"(^|/)(tests?|__pycache__|(site|dist)-packages|idlelib)/|_sysconfigdata|^config-")
    assert [name for name in documents if unwanted.search(name)] == []
    tenth = set(islice(documents, len(documents) // 10))
    assert any(name.startswith("pydoc_data/topics/") for name in tenth)
    assert min(tenth) < "c" and max(tenth) > "u"
