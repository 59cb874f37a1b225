"""Tiny models of the supported classes with tiny tokenizers, and small texts; made once per test run."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.harvest import HarvestConfig

SENTENCES = [
    "The cache holds rows of activations, shuffled once.",
    "A quick brown fox reads shards; the lazy dog writes them back.",
    "Numbers such as 12, 345 and 6789 stand between words.",
    "def harvest(model, text):\n    return [row for row in model(text)]\n",
]
VOCABULARY = 300


def _save_tokenizer(folder: Path, **special: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = sorted({*special.values(), "<|endoftext|>"})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _settings(name: str, layers: int, positions: int) -> Any:
    import transformers as t

    wide = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
    }
    grouped = {**wide, "num_key_value_heads": 2, "head_dim": 8}
    small_ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    makers: dict[str, Callable[[], Any]] = {
        "neox": lambda: t.GPTNeoXConfig(**wide, **small_ids, use_parallel_residual=True),
        "neox_sequential": lambda: t.GPTNeoXConfig(**wide, **small_ids, use_parallel_residual=False),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=layers, n_head=4, n_positions=positions, **small_ids
        ),
        "llama": lambda: t.LlamaConfig(**wide, **small_ids, num_key_value_heads=2),
        "qwen3": lambda: t.Qwen3Config(**grouped, **small_ids),
        "mistral": lambda: t.MistralConfig(**grouped, **small_ids, sliding_window=None),
        "gemma2": lambda: t.Gemma2Config(**grouped, **small_ids, query_pre_attn_scalar=8, sliding_window=32),
        "olmo2": lambda: t.Olmo2Config(**wide, **small_ids, num_key_value_heads=2),
        "opt": lambda: t.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=positions,
            **small_ids,
        ),
        "llama4": lambda: t.Llama4TextConfig(
            **grouped, **small_ids, intermediate_size_mlp=64, num_local_experts=2, interleave_moe_layer_step=2
        ),
        "gemma3n": lambda: t.Gemma3nTextConfig(
            **grouped,
            **small_ids,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            num_kv_shared_layers=0,
            layer_types=["sliding_attention", "full_attention"] * (layers // 2),
            sliding_window=32,
            activation_sparsity_pattern=[0.0] * layers,
        ),
        "granite": lambda: t.GraniteConfig(
            **wide, **small_ids, num_key_value_heads=2, residual_multiplier=0.3
        ),
    }
    return makers[name]()


SPECIAL_TOKENS = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
ONE_FOR_ALL = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose by several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Name of a model class -> a folder with such a model, random weights, and its tokenizer."""
    made: dict[tuple[str, int, int], Path] = {}
    logging.getLogger("transformers").setLevel(logging.ERROR)

    def make(name: str, layers: int = 4, positions: int = 64) -> Path:
        from transformers import AutoModelForCausalLM

        key = (name, layers, positions)
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / f"tiny-{name}"
            torch.manual_seed(len(name))
            model = AutoModelForCausalLM.from_config(_settings(*key))
            for parameter in model.parameters():  # biases and gains start as constants, which hide mistakes
                parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
            _save_tokenizer(folder, **SPECIAL_TOKENS.get(name, ONE_FOR_ALL))
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents in one JSON lines file, of very different lengths; some are empty."""
    folder = tmp_path_factory.mktemp("text")
    documents = [
        " ".join(SENTENCES[(i + j) % 4] for j in range(i % 7)) + f" {i}" * (i % 3) for i in range(60)
    ]
    lines = "".join(
        json.dumps({"text": document, "number": i}) + "\n" for i, document in enumerate(documents)
    )
    (folder / "documents.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="session")
def make_config(model_folder: Callable[[str], Path], text_folder: Path) -> Callable[..., HarvestConfig]:
    """A small harvest on the CPU; nested settings are given as dicts."""

    def make(model: str | Path = "neox", **settings: Any) -> HarvestConfig:
        folder = model if isinstance(model, Path) else model_folder(model)
        values: dict[str, Any] = {
            "model": {"name": str(folder), "dtype": "float32"},
            "text": {"kind": "files", "paths": str(text_folder)},
            "tokens": {"context": 16},
            "hooks": ["resid_post.1", "mlp_out.2"],
            "num_tokens": 1000,
            "heldout_fraction": 0.2,
            "device": "cpu",
            "batch_size": 8,
            "storage": {"chunk_rows": 64, "shard_bytes": 1 << 15},
        }
        return HarvestConfig.model_validate({**values, **settings})

    return make
