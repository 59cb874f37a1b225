"""Small synthetic caches for training: rows are sparse combinations of more directions than dimensions."""

from pathlib import Path
from typing import Any

import torch

from ..store.reading.reader import ActivationCache, open_cache
from ..store.writing.writer import CacheWriter
from ..train import TrainConfig

D_MODEL, D_OUT = 24, 16  # widths of the hooks resid and out


def sparse_rows(num_rows: int, d_model: int, seed: int) -> torch.Tensor:
    """[num_rows, d_model]: about 4 of 4 * d_model directions in each row, some far more often than others."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(4 * d_model, d_model, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    frequency = 1 / (torch.arange(4 * d_model) + 3.0)
    active = torch.rand(num_rows, 4 * d_model, generator=generator) < 4 * frequency / frequency.sum()
    strength = active * (0.5 + torch.rand(num_rows, 4 * d_model, generator=generator))
    noise = 0.02 * torch.randn(num_rows, d_model, generator=generator)
    return strength @ directions + noise + 0.2


def write_sparse_cache(
    path: Path, num_rows: int = 3000, d_model: int = D_MODEL, seed: int = 0
) -> ActivationCache:
    """A cache of :func:`sparse_rows` under the hook ``resid``, about a tenth of them held out."""
    with CacheWriter(
        path,
        hooks={"resid": d_model},
        identity={"source": f"synthetic {seed}", "model": {"name": "toy"}},
        heldout_fraction=0.1,
    ) as writer:
        writer.write_rows({"resid": sparse_rows(num_rows, d_model, seed)})
    return open_cache(path)


def write_cache_of_two_hooks(path: Path, num_rows: int = 3000, seed: int = 0) -> ActivationCache:
    """The rows of :func:`write_sparse_cache`, and under ``out`` [16] a function of them with some noise.

    Their halves are there too, as those of two layers: ``layer.0``, ``layer.1``, ``added.0``, ``added.1``.
    """
    rows = sparse_rows(num_rows, D_MODEL, seed)
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(D_MODEL, D_OUT, generator=generator)
    out = (rows @ weights).relu() + 0.05 * torch.randn(num_rows, D_OUT, generator=generator)
    halves = {
        f"{name}.{i}": half
        for name, whole in (("layer", rows), ("added", out))
        for i, half in enumerate(whole.chunk(2, dim=1))
    }
    with CacheWriter(
        path,
        hooks={"resid": D_MODEL, "out": D_OUT, **{name: half.shape[1] for name, half in halves.items()}},
        identity={"source": f"synthetic {seed} and a function of it", "model": {"name": "toy"}},
        heldout_fraction=0.1,
    ) as writer:
        writer.write_rows({"resid": rows, "out": out, **halves})
    return open_cache(path)


def small_run(*variants: dict[str, Any], **settings: Any) -> TrainConfig:
    """A run of 8 steps of 256 rows that fits the small cache; keyword arguments change its settings."""
    defaults: dict[str, Any] = {
        "num_latents": 96,
        "batch_rows": 256,
        "steps": 8,
        "dead_after_rows": 700,
        "optimizer": {"learning_rate": 0.003},
        "checkpoint": {"every_steps": 3, "keep": 9},
        "log": {"every_steps": 2, "progress": False},
        "device": "cpu",
    }
    return TrainConfig.model_validate({"variants": list(variants), **defaults, **settings})
