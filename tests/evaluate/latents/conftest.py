"""The codes of all held-out rows of the small cache, dense, and what is collected from them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saecache.evaluate.latents.codes import CodeSpill
from saecache.evaluate.latents.collect import CollectSettings, collect_latents, compare_directions
from saecache.evaluate.latents.rows import LatentRows, find_latent_rows
from saecache.evaluate.latents.table import Latents
from saecache.evaluate.rows import MeasuredRows
from saecache.store import ActivationCache
from saecache.train import Pairs
from saecache.train.sae import SAE
from saecache.train.variants.topk import TopK

from ..conftest import HOOK, make_sae

SETTINGS = CollectSettings(num_contexts=6, per_fifth=2, num_sampled=16, radius=3, seed=0)


@pytest.fixture(scope="module")
def sae(cache) -> SAE:
    return make_sae(cache, "topk", TopK(k=4))


@pytest.fixture(scope="module", params=["positive", "signed"])
def dense(cache, sae, request) -> torch.Tensor:
    """Codes of all held-out rows [N, F]."""
    codes = sae.encode(cache.rows(HOOK, np.arange(cache.num_rows("heldout")), split="heldout"))
    if request.param == "signed":  # as those of Probabilistic TopK
        codes[::3] *= -1
    return codes


@pytest.fixture(scope="module")
def rows(cache) -> LatentRows:
    return find_latent_rows(
        cache, MeasuredRows(split="heldout", first=0, count=cache.num_rows("heldout")), 0, 0
    )


Collect = Callable[..., Latents]


@pytest.fixture(scope="module")
def collect(cache: ActivationCache, sae, rows, unembedding, tmp_path_factory) -> Collect:
    """Collect from dense codes, spilled ``block`` rows at a time."""

    def collected(
        dense: torch.Tensor,
        settings: CollectSettings = SETTINGS,
        *,
        block: int = 100,
        with_model: bool = True,
        max_pairs: int = 10**9,
    ) -> Latents:
        folder: Path = tmp_path_factory.mktemp("codes")
        with CodeSpill(folder, dense.shape[1], len(rows.passages), max_pairs) as spill:
            for start in range(0, len(dense), block):
                spill.update(
                    Pairs.from_dense(dense[start : start + block]), rows.offset[start : start + block]
                )
            found = collect_latents(
                sae,
                spill.finish(),
                rows.passages,
                settings,
                name="topk",
                rows=rows.counts,
                fingerprint=cache.fingerprint,
                directions=compare_directions(sae, unembedding if with_model else None),
                decode_token="<{}>".format,
            )
        assert list(folder.iterdir()) == []
        return found

    return collected
