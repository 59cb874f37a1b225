"""A small language model, a cache harvested from it, and SAEs of that cache, made in well under a second."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saecache.store import CacheWriter, StorageConfig, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.train.sae import SAE
from saecache.train.sae_config import SAEConfig
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.topk import TopK

VOCABULARY, WIDTH, CONTEXT, LATENTS = 50, 16, 24, 96
HOOK, OTHER_HOOK = "resid_post.0", "resid_post.1"
SHORT_RUN: dict[str, Any] = {  # settings of a training that makes SAEs worth measuring
    "num_latents": 64,
    "batch_rows": 128,
    "steps": 60,
    "optimizer": {"learning_rate": 0.003},
    "log": {"every_steps": 30, "progress": False},
    "device": "cpu",
}


class TinyModel(nn.Module):
    """Two causal blocks with residual streams; satisfies SplicedModel."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.layers = [torch.randn(WIDTH, WIDTH, generator=generator) / 3 for _ in range(2)]
        self.unembed = torch.randn(WIDTH, VOCABULARY, generator=generator)
        self.calls: list[tuple[str, int]] = []

    def _run(
        self, ids: Tensor, replace: dict[str, Callable[[Tensor], Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, seen = self.embed[ids] + 0.5, {}
        for i, weight in enumerate(self.layers):
            steps = torch.arange(1, ids.shape[1] + 1)[:, None]
            x = x + torch.tanh((x.cumsum(1) / steps) @ weight) + torch.tanh(x @ weight.T)
            name = f"resid_post.{i}"
            seen[name] = x
            x = replace.get(name, lambda x: x)(x)
        return x @ self.unembed, seen

    def write_text(self, starts: np.ndarray) -> np.ndarray:
        """Token ids drawn from the model itself, so that it is good at predicting them; 0 at ``starts``."""
        generator = torch.Generator().manual_seed(1)
        begins = torch.from_numpy(starts)
        ids = torch.zeros(starts.shape, dtype=torch.int64)
        for position in range(CONTEXT):
            if position:
                chances = self._run(ids[:, :position], {})[0][:, -1].softmax(-1)
                chances[:, 0] = 0
                ids[:, position] = torch.multinomial(chances, 1, generator=generator)[:, 0]
            else:
                ids[:, 0] = torch.randint(1, VOCABULARY, (len(ids),), generator=generator)
            ids[begins[:, position], position] = 0
        return ids.numpy().astype(np.int32)

    def logits(self, ids: Tensor) -> Tensor:
        self.calls.append(("clean", len(ids)))
        return self._run(ids, {})[0]

    def logits_with(self, ids: Tensor, hook: str, replace: Callable[[Tensor], Tensor]) -> Tensor:
        self.calls.append((hook, len(ids)))
        return self._run(ids, {hook: replace})[0]

    def activations(self, ids: Tensor) -> dict[str, Tensor]:
        return self._run(ids, {})[1]


@pytest.fixture(scope="session")
def model() -> TinyModel:
    return TinyModel()


@dataclass
class Output:
    """Output weights of a model with a layer norm."""

    weight: torch.Tensor
    centers: bool = True
    norm: str = "the final norm"


@pytest.fixture(scope="session")
def unembedding() -> Output:
    return Output(torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(7)))


def make_cache(
    path: Path, model: TinyModel, *, heldout_fraction: float, storage: StorageConfig, name: str = "tiny"
) -> ActivationCache:
    """Packed documents of random lengths, each begun by token 0, which gives no row; padding at some ends."""
    random = np.random.default_rng(1)
    num_sequences = 150
    starts = random.random((num_sequences, CONTEXT)) < 0.08
    starts[0, 0] = True
    documents = (np.cumsum(starts.reshape(-1)).reshape(starts.shape) - 1).astype(np.int32)
    ids = model.write_text(starts)
    keep = ~starts
    for sequence in range(0, num_sequences, 7):
        ids[sequence, -5:], documents[sequence, -5:], keep[sequence, -5:] = -1, -1, False
    activations = model.activations(torch.from_numpy(np.maximum(ids, 0)).long())
    with CacheWriter(
        path,
        hooks={HOOK: WIDTH, OTHER_HOOK: WIDTH},
        context=CONTEXT,
        identity={"model": {"name": name}, "text": {"kind": "random"}},
        seed=3,
        heldout_fraction=heldout_fraction,
        storage=storage,
    ) as writer:
        mask = torch.from_numpy(keep)
        rows = {hook: values[mask] for hook, values in activations.items()}
        writer.write_sequences(ids=ids, documents=documents, keep=keep, activations=rows)
    return open_cache(path)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> ActivationCache:
    path = tmp_path_factory.mktemp("cache") / "cache"
    return make_cache(path, model, heldout_fraction=0.4, storage=StorageConfig(chunk_rows=64))


@pytest.fixture(scope="session")
def cache_without_heldout(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> ActivationCache:
    path = tmp_path_factory.mktemp("cache_without_heldout") / "cache"
    return make_cache(path, model, heldout_fraction=0.0, storage=StorageConfig(chunk_rows=64))


def make_sae(
    cache: ActivationCache,
    name: str,
    variant: TopK | BatchTopK,
    hook: str = HOOK,
    kind: str = "unit",
    seed: int = 0,
) -> SAE:
    """Random directions with the decoder as the encoder, and a few latents that can never fire."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=random), dim=1)
    bias = 0.05 * torch.randn(LATENTS, generator=random)
    bias[:5] = -1e6
    cfg = SAEConfig(
        kind=variant.kind,
        name=name,
        d_model=WIDTH,
        num_latents=LATENTS,
        k=variant.expected_l0,
        inference=variant.inference,
        hook=hook,
        normalization=cache.normalizer(hook, kind).to_dict(),
        variant=variant,
        cache={"fingerprint": cache.fingerprint, "model": cache.manifest.identity.get("model")},
        training={"steps": 3},
    )
    tensors = {
        "W_enc": weights.clone(),
        "W_dec": 0.3 * weights,
        "b_enc": bias,
        "b_dec": torch.zeros(WIDTH),
    }
    if isinstance(variant, BatchTopK):
        tensors["threshold"] = torch.tensor(0.35)
    return SAE(cfg, tensors)


@pytest.fixture
def run_dir(tmp_path: Path, cache: ActivationCache) -> Path:
    """A run folder of three SAEs on two hooks, with its log."""
    folder = tmp_path / "runs" / "tiny"
    saes = [
        make_sae(cache, "topk_k4", TopK(k=4)),
        make_sae(cache, "batch_topk_k6", BatchTopK(k=6), seed=1),
        make_sae(cache, "raw_k4", TopK(k=4), hook=OTHER_HOOK, kind="scale", seed=2),
    ]
    lines = []
    for sae in saes:
        sae.save(folder / sae.cfg.name / "sae")
        for step in range(1, 40):
            record = {"step": step, "rows": 64 * step, "variant": sae.cfg.name}
            lines.append({**record, "fvu": 1 / step, "l0": 4.0, "dead": step % 7})
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
