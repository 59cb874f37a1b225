"""The demo model before and after training: its settings, tokenizer, architecture, and files."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class DemoModelSettings:
    """Everything that decides the result, besides the text and the versions of the software."""

    seed: int = 0
    vocab_size: int = 4096
    context_tokens: int = 256
    hidden_size: int = 160
    num_layers: int = 6
    num_heads: int = 5
    num_steps: int = 2000
    sequences_per_step: int = 16
    sequences_per_microbatch: int = 8
    warmup_steps: int = 100
    decay_share: float = 0.4
    matrix_learning_rate: float = 3e-3
    other_learning_rate: float = 3e-3
    weight_decay: float = 0.1
    gradient_clip: float = 1.0


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE without normalization, so that decoding gives back every text exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: DemoModelSettings) -> GPTNeoXForCausalLM:
    """A GPT-NeoX with freshly initialised weights and tied embeddings."""
    config = GPTNeoXConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        intermediate_size=4 * settings.hidden_size,
        max_position_embeddings=settings.context_tokens,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPTNeoXForCausalLM(config)


def save_model(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Float16 weights, to halve the download; the config says float32, so that they are used in that."""
    tokenizer.save_pretrained(out)
    tokenizer_config = out / "tokenizer_config.json"
    # Version 5 of transformers writes a class name that version 4 does not know; this one both know.
    written = json.loads(tokenizer_config.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer_config.write_text(json.dumps(written, indent=2) + "\n", "utf-8")
    half = GPTNeoXForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(out)
    half.config.dtype = torch.float32
    half.config.save_pretrained(out)
