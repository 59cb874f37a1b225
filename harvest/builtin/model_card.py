"""The text of the demo model's card."""

import math
from collections.abc import Mapping

from .heldout import Loss

_CARD = """\
---
language: en
license: other
license_name: psf-2.0
pipeline_tag: text-generation
tags: [gpt_neox, demo]
---
# saecache demo model

A small causal language model with Pythia's architecture (GPT-NeoX: parallel residual, rotary positions,
byte-level BPE), trained from scratch on the source and the documentation of Python's own standard library.
It is there so that `saecache demo` can harvest activations of a real model without downloading one. It is
not meant to write code.

## Held-out loss
About 5 % of the documents, chosen by a hash of their names, were kept out of the training and of the
tokenizer. Each is read alone, from `<|endoftext|>`, in windows that do not overlap. *Unigram* guesses every
token by its frequency in the training text (one occurrence added to each token), on the same held-out
tokens.

{loss_table}

The second group leaves out the character tables of `encodings/`, many of which resemble each other closely.
The figures are those of the files in this folder, used in float32.

## Training
| | |
|---|---|
{facts}

Settings of `saecache.harvest.builtin.train_demo_model`, which made this folder and this card:

| setting | value |
|---|---|
{settings}

Training batches are packed windows of documents separated by `<|endoftext|>`, which is also the start, end
and padding token. The matrices inside the layers are optimised by Muon, the rest by AdamW; the learning
rate warms up, stays constant, and falls linearly to zero over the last `decay_share` of the steps. Forward
passes in bfloat16 autocast, weights and updates in float32. The embedding and unembedding matrices are
tied. The weights are stored in float16. Minutes are on the clock, core-minutes are processor time; they
differ when the machine has other work.

## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from saecache.harvest.builtin import DEMO_MODEL_PATH

model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_PATH)
tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
```

## Licence of the text
The training text is part of Python: Copyright (c) Python Software Foundation, PSF License Agreement
(version 2). It is not in this folder: `saecache.harvest.builtin.stdlib_text` reads it from the running
Python, so that another version of Python gives slightly different text and losses.
"""


def model_card(
    losses: Mapping[str, Loss], facts: Mapping[str, object], settings: Mapping[str, object]
) -> str:
    """Markdown with the losses per group of documents, facts about the run, and its settings."""
    return _CARD.format(
        loss_table=_loss_table(losses), facts=_table_rows(facts), settings=_table_rows(settings)
    )


def _loss_table(losses: Mapping[str, Loss]) -> str:
    rows = ["| documents | | nats per token | nats per byte | bits per byte |", "|---|---|---|---|---|"]
    for documents, loss in losses.items():
        size = f"{documents} ({loss.num_tokens:,} tokens, {loss.num_bytes:,} bytes)"
        rows.append(f"| {size} | model | {_figures(loss.model_nats, loss)} |")
        rows.append(f"| | unigram | {_figures(loss.unigram_nats, loss)} |")
        rows.append(f"| | model / unigram | {loss.share_of_unigram:.3f} | | |")
    return "\n".join(rows)


def _figures(nats: float, loss: Loss) -> str:
    per_byte = nats / loss.num_bytes
    return f"{nats / loss.num_tokens:.4f} | {per_byte:.4f} | {per_byte / math.log(2):.4f}"


def _table_rows(values: Mapping[str, object]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in values.items())
