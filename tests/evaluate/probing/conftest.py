"""A text reader without a language model: words whose meaning is known, and SAEs whose latents are known."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from saecache.evaluate.probing.texts import TextReader
from saecache.train.sae import SAE
from saecache.train.sae_config import SAEConfig
from saecache.train.variants.relu import ReLU

HOOK, WIDTH = "resid_post.0", 24
WORDS = [f"w{i}" for i in range(40)]
BOS = 40


class WordModel:
    """The activation of a token is its own vector, so that pooled activations can be computed by hand."""

    def __init__(self) -> None:
        self.vectors = torch.randn(BOS + 1, WIDTH, generator=torch.Generator().manual_seed(0))
        self.shapes: list[tuple[int, ...]] = []

    def activations(self, ids: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        self.shapes.append(tuple(ids.shape))
        x = self.vectors[ids.clamp_min(0)].clone()
        x[ids < 0] = 1e6  # padding must have no part in anything
        return dict.fromkeys(hooks, x)


@pytest.fixture
def reader() -> TextReader:
    def tokenize(texts: list[str]) -> list[np.ndarray]:
        return [np.asarray([WORDS.index(word) for word in text.split()], dtype=np.int64) for text in texts]

    return TextReader(WordModel(), tokenize, BOS, lambda: list(enumerate(WORDS)))


def relu_sae(directions: Tensor, name: str = "relu", hook: str = HOOK) -> SAE:
    """codes = ReLU(x @ directionsᵀ) of raw rows: float32 [F, D] directions."""
    variant = ReLU()
    cfg = SAEConfig(
        kind="relu",
        name=name,
        d_model=directions.shape[1],
        num_latents=len(directions),
        k=None,
        inference=variant.inference,
        hook=hook,
        normalization={"kind": "none", "d_model": directions.shape[1], "scale": 1.0},
        variant=variant,
        cache={"fingerprint": ""},
        training={},
    )
    zeros = torch.zeros(len(directions)), torch.zeros(directions.shape[1])
    tensors = {"W_enc": directions.clone(), "W_dec": directions.clone(), "b_enc": zeros[0], "b_dec": zeros[1]}
    return SAE(cfg, tensors)
