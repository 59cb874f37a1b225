"""A cache and SAEs whose latents are words, so that what a judge should find is known."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.evaluate import run as evaluate
from saecache.evaluate.judge import InterpretConfig, Interpreted, interpret
from saecache.evaluate.judge.activations import Places, find_places
from saecache.evaluate.judge.windows import Windows, cut_windows
from saecache.store import CacheWriter, StorageConfig, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.train.sae import SAE
from saecache.train.sae_config import SAEConfig
from saecache.train.variants.batch_topk import BatchTopK

from .judge_server import MODEL, Judge, serve

WORDS = [f"{first}{last}" for first in ("ba", "ce", "di", "fo", "gu", "ka") for last in "bdfgklmn"]
WIDTH = len(WORDS)
CONTEXT, DOCUMENTS, WINDOW = 48, 160, 8
HOOK = "resid_post.0"
SMALL: dict[str, Any] = {
    "num_latents": 3,
    "windows": {"tokens": WINDOW, "least": 60, "explain": 20, "score": 20, "per_prompt": 4},
    "calibration": {"explain": 5, "score": 5},
}


def decode(ids: Sequence[int]) -> str:
    return "".join(f" {WORDS[i]}" for i in ids)


def make_word_cache(path: Path, *, heldout_fraction: float = 0.9) -> ActivationCache:
    """Documents of random words. Word i activates direction i strongly, and at random another one weakly: the
    strong activations of latent i are its word, the weak ones are any words.
    """
    random = np.random.default_rng(0)
    lengths = random.integers(40, 100, DOCUMENTS)
    tokens = random.integers(0, WIDTH, lengths.sum())
    documents = np.repeat(np.arange(DOCUMENTS), lengths)
    padding = -len(tokens) % CONTEXT
    shape = (-1, CONTEXT)
    ids = np.append(tokens, np.full(padding, -1)).reshape(shape).astype(np.int32)
    documents = np.append(documents, np.full(padding, -1)).reshape(shape).astype(np.int32)
    keep = ids >= 0
    x = np.eye(WIDTH, dtype=np.float32)[tokens]
    noisy = random.random(len(tokens)) < 0.6
    other = (tokens + random.integers(1, WIDTH, len(tokens))) % WIDTH
    x[np.flatnonzero(noisy), other[noisy]] = random.uniform(0.2, 0.5, noisy.sum())
    with CacheWriter(
        path,
        hooks={HOOK: WIDTH},
        context=CONTEXT,
        identity={"model": {"name": "words"}, "text": {"kind": "random"}},
        seed=3,
        heldout_fraction=heldout_fraction,
        storage=StorageConfig(chunk_rows=256),
    ) as writer:
        rows = {HOOK: torch.from_numpy(x)}
        writer.write_sequences(ids=ids, documents=documents, keep=keep, activations=rows)
    return open_cache(path)


def make_word_sae(cache: ActivationCache, name: str, order: np.ndarray | None = None) -> SAE:
    """Latent i is word ``order[i]``; without an order word i."""
    order = np.arange(WIDTH) if order is None else order
    weights = torch.eye(WIDTH)[torch.from_numpy(order)]
    cfg = SAEConfig(
        kind="batch_topk",
        name=name,
        d_model=WIDTH,
        num_latents=WIDTH,
        k=2.0,
        inference="threshold",
        hook=HOOK,
        normalization=cache.normalizer(HOOK, "unit").to_dict(),
        variant=BatchTopK(k=2),
        cache={"fingerprint": cache.fingerprint, "model": cache.manifest.identity.get("model")},
        training={"steps": 1},
    )
    tensors = {
        "W_enc": weights.clone(),
        "W_dec": weights,
        "b_enc": torch.zeros(WIDTH),
        "b_dec": torch.zeros(WIDTH),
    }
    return SAE(cfg, tensors | {"threshold": torch.tensor(0.12)})


@pytest.fixture(scope="session")
def word_cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return make_word_cache(tmp_path_factory.mktemp("words") / "cache")


@pytest.fixture(scope="session")
def places(word_cache: ActivationCache) -> Places:
    return find_places(word_cache, "heldout", 0, word_cache.num_rows("heldout"))


@pytest.fixture(scope="session")
def windows(word_cache: ActivationCache, places: Places) -> Windows:
    return cut_windows(word_cache, places, WINDOW)


@pytest.fixture(scope="session")
def measured_run(word_cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two SAEs, the second with its latents in another order, and their results."""
    folder = tmp_path_factory.mktemp("runs") / "words"
    make_word_sae(word_cache, "plain").save(folder / "plain" / "sae")
    make_word_sae(word_cache, "mixed", np.random.default_rng(1).permutation(WIDTH)).save(
        folder / "mixed" / "sae"
    )
    evaluate([folder], word_cache, num_latents=0, show_progress=False)
    return folder


@pytest.fixture
def run_folder(measured_run: Path, tmp_path: Path) -> Path:
    """The same, which a test may write into."""
    return Path(shutil.copytree(measured_run, tmp_path / "words"))


@pytest.fixture
def judge() -> Iterator[Judge]:
    with serve(Judge()) as running:
        yield running


Ask = Callable[..., Interpreted]


@pytest.fixture
def ask(run_folder: Path, word_cache: ActivationCache, judge: Judge) -> Ask:
    """``ask("plain", **settings)`` interprets one SAE of the run with the judge, at a small size."""

    def ask_judge(*names: str, endpoint: dict[str, Any] | None = None, **settings: Any) -> Interpreted:
        options = {key: settings.pop(key) for key in ("dry_run", "answers", "say") if key in settings}
        server = {"url": judge.url, "model": MODEL, "stored_as": "judge"} | (endpoint or {})
        config = InterpretConfig.model_validate(SMALL | {"endpoint": server} | settings)
        return interpret(
            [run_folder / name / "sae" for name in names or ["plain"]],
            word_cache,
            config,
            decode,
            results=run_folder / "results.json",
            show_progress=False,
            **options,
        )

    return ask_judge
