"""The local sentence encoder against its formula, on a tiny BERT made here."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from saecache.common.errors import UsageError
from saecache.evaluate.judge.embeddings import SentenceEncoder
from saecache.evaluate.results import read_results

from .conftest import Ask

CPU = torch.device("cpu")
TEXTS = [" ".join(f"w{(7 * i + j) % 20}" for j in range(1 + i % 9)) for i in range(40)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "tiny-encoder"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=22, max_position_embeddings=300, **sizes)).save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i + 2 for i in range(20)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=300
    ).save_pretrained(folder)
    return folder


def write_pooling(folder: Path, **modes: bool) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16} | modes))


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_vectors_are_pooled_hidden_states(bert: Path, pooling: str) -> None:
    write_pooling(bert, **{f"pooling_mode_{pooling}": True, "pooling_mode_max_tokens": False})
    encoder = SentenceEncoder(bert, CPU)
    assert encoder.name == "tiny-encoder"
    found = encoder.embed(TEXTS)
    model = BertModel.from_pretrained(bert).eval()
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([[int(word[1:]) + 2 for word in text.split()]])
        with torch.no_grad():
            hidden = model(ids).last_hidden_state[0]  # alone: no padding
        expected = hidden[0] if pooling == "cls_token" else hidden.mean(0)
        expected = (expected / expected.norm()).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_what_is_no_encoder_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder of a sentence encoder: it has no config.json"):
        SentenceEncoder(tmp_path, CPU)
    write_pooling(bert, pooling_mode_max_tokens=True)
    with pytest.raises(UsageError, match=r"pools tokens by pooling_mode_max_tokens; expected"):
        SentenceEncoder(bert, CPU)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="cannot be loaded"):
        SentenceEncoder(tmp_path, CPU)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04pickles")  # never opened
    with pytest.raises(UsageError, match="cannot be loaded"):
        SentenceEncoder(tmp_path, CPU)


def test_code_beside_an_encoder_never_runs(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(bert, tmp_path / "encoder", ignore=shutil.ignore_patterns("1_Pooling"))
    auto_map = {"AutoModel": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map, "model_type": "evil"}))
    mark = tmp_path / "owned"
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import PretrainedConfig\n"
        "class EvilConfig(PretrainedConfig):\n    model_type = 'evil'\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks
    with pytest.raises(UsageError, match=r"(?s)embeddings\.path=.*cannot be loaded .*with it is not run"):
        SentenceEncoder(folder, CPU)
    assert not mark.exists()


def _change(folder: Path, name: str, **values: object) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        lambda folder: _change(folder, "config.json", num_attention_heads=0),
        lambda folder: _change(folder, "config.json", vocab_size=-1),
        lambda folder: _change(folder, "config.json", hidden_size="16"),
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        lambda folder: _change(folder, "tokenizer_config.json", pad_token=None),
        lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"),
        lambda folder: ((folder / "vocab.json").mkdir(), None)[1],
    ],
)  # fmt: skip
def test_a_damaged_encoder_is_refused_when_it_is_loaded(
    bert: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = shutil.copytree(bert, tmp_path / "encoder", ignore=shutil.ignore_patterns("1_Pooling"))
    damage(folder)
    with pytest.raises(UsageError, match=re.escape(str(folder)) + r"|'encoder'"):
        SentenceEncoder(folder, CPU)


def test_saes_are_compared_by_a_local_encoder(ask: Ask, run_folder: Path, bert: Path) -> None:
    write_pooling(bert, pooling_mode_mean_tokens=True)
    windows = {"tokens": 8, "least": 60, "explain": 10, "score": 10, "per_prompt": 20}
    few = {"windows": windows, "calibration": None, "fuzzing": "none", "num_latents": 4}
    ask("plain", "mixed", embeddings={"kind": "folder", "path": str(bert)}, **few)
    results = read_results(run_folder / "results.json")
    assert [one.encoder for one in results.uniqueness] == ["tiny-encoder"] * 2
    before = (run_folder / "results.json").read_bytes()
    ask("plain", "mixed", embeddings={"kind": "folder", "path": str(bert)}, **few)
    assert (run_folder / "results.json").read_bytes() == before
    assert str(bert) not in before.decode()
