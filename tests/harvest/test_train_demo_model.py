"""Training the demo model: a run that is stopped and continued ends where an unbroken one does."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saecache.harvest.builtin import train_demo_model
from saecache.harvest.builtin.demo_model import DemoModelSettings
from saecache.harvest.builtin.heldout import document_loss, unigram_log_probability
from saecache.harvest.builtin.stdlib_text import is_heldout, stdlib_documents
from saecache.harvest.builtin.train_demo_model import DemoTraining, learning_rate_share, training_batches

SETTINGS = DemoModelSettings(
    vocab_size=300,
    context_tokens=32,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_steps=4,
    sequences_per_step=4,
    sequences_per_microbatch=2,
    warmup_steps=2,
)
FILES = {"config.json", "generation_config.json", "model.safetensors", "README.md"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small take longer to hand to a second thread than to multiply."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    short = [(name, text) for name, text in stdlib_documents() if len(text) < 2500]
    heldout = [document for document in short if is_heldout(document[0])][:4]
    train = [document for document in short if not is_heldout(document[0])][:30]
    monkeypatch.setattr(train_demo_model, "stdlib_documents", lambda: iter([*heldout, *train]))


@pytest.mark.usefixtures("few_documents")
def test_a_continued_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken = DemoTraining(SETTINGS, tmp_path / "unbroken")
    unbroken.run(save_every_seconds=math.inf, state_path=None)

    stopped = DemoTraining(SETTINGS, tmp_path / "stopped")
    for step, batch in enumerate(islice(training_batches(stopped.train_documents, SETTINGS), 2)):
        train_demo_model.train_step(stopped.model, stopped.optimizers, batch, step, SETTINGS)
        stopped.step += 1
    stopped.save(tmp_path / "state")
    continued = DemoTraining(SETTINGS, tmp_path / "continued")
    continued.restore(tmp_path / "state")
    continued.run(save_every_seconds=math.inf, state_path=None)

    expected = dict(unbroken.model.named_parameters())
    for name, parameter in continued.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)


@pytest.mark.usefixtures("few_documents")
def test_the_folder_loads_and_its_card_states_the_losses(tmp_path: Path) -> None:
    training = DemoTraining(SETTINGS, tmp_path)
    training.run(save_every_seconds=math.inf, state_path=None)
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == SETTINGS.vocab_size
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "training steps done | 4 of 4" in card
    assert card.count("| unigram |") == 2  # all held-out documents, and those that are not tables


def test_learning_rate_warms_up_stays_and_decays() -> None:
    settings = DemoModelSettings(num_steps=10, warmup_steps=2, decay_share=0.4)
    shares = [learning_rate_share(step, settings) for step in range(10)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_every_token_of_a_document_counts_once() -> None:
    tokens = list(range(1, 11))
    tokenizer = SimpleNamespace(
        bos_token_id=0,
        backend_tokenizer=SimpleNamespace(
            encode=lambda text, add_special_tokens: SimpleNamespace(ids=tokens)
        ),
    )

    def uniform(input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert input_ids.shape[1] <= 4
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 11))

    unigram = torch.full((11,), -2.0)
    loss = document_loss(uniform, tokenizer, "é", unigram, context_tokens=4)
    assert loss.num_tokens == 10
    assert loss.num_bytes == 2
    assert loss.model_nats == pytest.approx(10 * math.log(11))
    assert loss.unigram_nats == pytest.approx(20)


def test_unigram_probabilities_are_smoothed_shares() -> None:
    log_probability = unigram_log_probability([[0, 1, 1], [1]], vocab_size=3)
    assert log_probability.exp().tolist() == pytest.approx([2 / 7, 4 / 7, 1 / 7])
