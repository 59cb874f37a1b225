"""Held-out loss of the demo model, beside the loss of guessing every token by its frequency alone."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss in nats of the model and of the unigram baseline, summed over the same tokens."""

    model_nats: float
    unigram_nats: float
    num_tokens: int
    num_bytes: int

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(
            model_nats=self.model_nats + other.model_nats,
            unigram_nats=self.unigram_nats + other.unigram_nats,
            num_tokens=self.num_tokens + other.num_tokens,
            num_bytes=self.num_bytes + other.num_bytes,
        )

    @property
    def share_of_unigram(self) -> float:
        return self.model_nats / self.unigram_nats


def total(losses: Iterable[Loss]) -> Loss:
    """The loss of all the documents together."""
    return sum(losses, Loss(model_nats=0.0, unigram_nats=0.0, num_tokens=0, num_bytes=0))


def encode_document(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a document, `<|endoftext|>` first."""
    # The backend does not warn that a document is longer than the context; it is cut into windows anyway.
    return [tokenizer.bos_token_id, *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids]


def unigram_log_probability(documents: Iterable[list[int]], vocab_size: int) -> Tensor:
    """Log of each token's share of the documents, [vocab_size], one occurrence added to each (Laplace)."""
    counts = torch.bincount(torch.tensor([token for d in documents for token in d]), minlength=vocab_size) + 1
    return (counts.double() / counts.sum()).log()


@torch.inference_mode()
def document_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    unigram: Tensor,
    *,
    context_tokens: int,
) -> Loss:
    """Loss of one document read from its `<|endoftext|>`, in windows that do not overlap.

    Every token of the text is predicted once; the first of a window only from the last of the window before.
    """
    tokens = torch.tensor(encode_document(tokenizer, text))
    model_nats = 0.0
    for start in range(0, len(tokens) - 1, context_tokens):
        window = tokens[start : start + context_tokens + 1]
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
        model_nats += cross_entropy(logits.float(), window[1:], reduction="sum").item()
    return Loss(
        model_nats=model_nats,
        unigram_nats=-unigram[tokens[1:]].sum().item(),
        num_tokens=len(tokens) - 1,
        num_bytes=len(text.encode()),
    )
