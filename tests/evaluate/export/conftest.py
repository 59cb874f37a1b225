"""SAEs of every kind, trained for a moment on rows of each normalization."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from saecache.store import CacheWriter, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, load_sae, run
from saecache.train.variants import VARIANTS

D_MODEL, LATENTS = 24, 96
HOOK = "resid_post.3"
OF_EVERY_KIND = ("unit", "scale", "rms_norm")
FEW = ("topk", "batch_topk", "feature_choice")
Trained = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """3000 rows of width 24, a tenth of them held out, as harvested from a model called toy."""
    path = tmp_path_factory.mktemp("export") / "cache"
    with CacheWriter(
        path,
        hooks={HOOK: D_MODEL},
        identity={
            "model": {"name": "toy"},
            "text": {"kind": "hub", "dataset": "toy/text"},
            "packing": {"bos_id": 0},
        },
        heldout_fraction=0.1,
    ) as writer:
        writer.write_rows({HOOK: 3 * sparse_rows(3000, D_MODEL, seed=0)})
    return open_cache(path)


@pytest.fixture(scope="session")
def trained(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """(kind, normalization) -> the folder of its SAE; of most normalizations only ``FEW`` kinds."""
    made: dict[str, dict[str, Path]] = {}

    def get(kind: str, normalization: str) -> Path:
        if normalization not in made:
            kinds = sorted(VARIANTS) if normalization in OF_EVERY_KIND else FEW
            out = tmp_path_factory.mktemp("runs") / "run"
            made[normalization] = _train_all(cache, normalization, kinds, out)
        return made[normalization][kind]

    return get


def free_relu(cache: ActivationCache, out: Path) -> Path:
    """A ReLU SAE whose decoder rows have norms of their own, some of them 0."""
    variant = {"kind": "relu", "name": "free", "decoder": "free"}
    folder = _train(cache, "scale", [variant], out)["free"]
    sae = load_sae(folder)
    sae.W_dec[::7] = 0
    sae.save(folder)
    return folder


def _train_all(
    cache: ActivationCache, normalization: str, kinds: Sequence[str], out: Path
) -> dict[str, Path]:
    few = {kind: {"k": 4} for kind in kinds if "k" in VARIANTS[kind].model_fields}
    return _train(
        cache, normalization, [{"kind": kind, "name": kind, **few.get(kind, {})} for kind in kinds], out
    )


def _train(
    cache: ActivationCache, normalization: str, variants: list[dict[str, Any]], out: Path
) -> dict[str, Path]:
    config = TrainConfig.model_validate(
        {
            "variants": variants,
            "num_latents": LATENTS,
            "batch_rows": 256,
            "steps": 30,
            "normalization": normalization,
            "optimizer": {"learning_rate": 0.01},
            "log": {"progress": False},
            "device": "cpu",
        }
    )
    return dict(run(config, cache, out).saes)
